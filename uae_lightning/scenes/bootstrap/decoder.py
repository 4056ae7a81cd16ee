"""The embedded decoder: a small SD3 transformer over a PCA codec, trained from scratch on short captions.

It learns to draw every object, colour, size, place and background, but meets them only in telegraphic captions of a few
words; the full sentences of long captions, and prompts, are left to the first stage.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image
from torch import Tensor, nn

from uae_lightning.algorithms import flow
from uae_lightning.interfaces import Encoder
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.bootstrap.captioner import mixed_caption, pictures, scenes_encoder
from uae_lightning.scenes.bootstrap.loop import train
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.scene import Scene, object_mask, sample_scene
from uae_lightning.stages.decoder_pretrain import weighted_mean
from uae_lightning.types import Conditioning

LATENT_CHANNELS = 32
WIDTH, LAYERS, HEADS = 128, 6, 4
# level, detail, share of the captions
MIXTURE = [("short", 1.0, 0.85), ("short", 0.6, 0.1), ("tag", 1.0, 0.05)]
OBJECT_WEIGHT = 6.0  # of latents that hold a part of an object: most do not, and backgrounds are learnt at once
DROPPED_CONDITIONS = 0.1  # of the samples are unconditional, for classifier-free guidance


def fit_codec(seed: int = 0, count: int = 3000) -> PatchCodec:
    codec = PatchCodec(patch_size=8, latent_channels=LATENT_CHANNELS)
    codec.fit(2 * pictures([sample_scene("train", seed, i) for i in range(count)]) - 1)
    return codec


def build_parts(folder: Path, seed: int, encoder_size: int) -> None:
    """Untrained decoder and projector, and the fitted codec, in the layout of diffusers."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    transformer.save_pretrained(folder / "decoder" / "transformer")
    fit_codec(seed).save_pretrained(folder / "decoder" / "vae")
    # shift 3: backgrounds are decided above sigma 0.95, where an unshifted schedule spends one step in twenty
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "decoder" / "scheduler")
    MLPProjector(None, encoder_size, 2 * WIDTH, WIDTH, normalize=True).save(folder / "projector")


def train_decoder(
    output: Path, work: Path, *, encoder: Path, steps: int, batch_size: int = 32, seed: int = 0
) -> dict[str, int]:
    """Train decoder and projector on the states of `encoder`; saves `output/decoder` and `output/projector` (bf16)."""
    reader = scenes_encoder(str(encoder))
    start = work / "start"
    if not (start / "projector" / "model.safetensors").exists():
        build_parts(start, seed, reader.hidden_size)
    decoder = SD3Decoder(str(start / "decoder"), resolution=64, sigma_spacing="even")
    projector = MLPProjector(str(start / "projector"))
    for part in (decoder, projector):
        part.adapt("all")
    task = _DecoderTask(reader, projector, decoder, batch_size, seed, work / "samples.png")
    trained = nn.ModuleList([projector, decoder])
    seconds = train(trained, task.loss, steps=steps, lr=1.5e-3, work=work, report=task.report)
    decoder.save(output / "decoder", torch.bfloat16)
    projector.save(output / "projector", torch.bfloat16)
    return {"seconds": round(seconds), "steps": steps, "images": steps * batch_size, "batch_size": batch_size}


class _DecoderTask:
    def __init__(self, encoder: Encoder, projector: MLPProjector, decoder: SD3Decoder, batch_size, seed, picture: Path):
        self.encoder, self.projector, self.decoder = encoder.eval(), projector, decoder
        self.batch_size, self.seed, self.picture = batch_size, seed, picture

    def loss(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 4, step])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        first = 4_000_000_000 + step * self.batch_size
        scenes = [sample_scene("train", self.seed, first + i) for i in range(self.batch_size)]
        captions = [mixed_caption(scene, rng, MIXTURE) for scene in scenes]
        conditioning = self.condition(captions)
        kept = torch.from_numpy(rng.random(len(scenes)) >= DROPPED_CONDITIONS)
        return {"flow": self.flow_loss(scenes, conditioning.drop(~kept), generator)}

    def condition(self, captions: list[str]) -> Conditioning:
        with torch.no_grad():
            states, mask = self.encoder.embed(captions)
        return Conditioning(self.projector(states), mask)

    def flow_loss(self, scenes: list[Scene], conditioning: Conditioning, generator: torch.Generator) -> Tensor:
        x0 = self.decoder.encode_images(pictures(scenes))
        noise = torch.randn(x0.shape, generator=generator)
        sigma = flow.sample_sigma(len(x0), distribution="shifted_uniform", shift=3.0, generator=generator)
        x, velocity = flow.interpolate(x0, noise, sigma)
        error = (self.decoder.velocity(x, sigma, conditioning) - velocity).square().mean(1, keepdim=True)
        covered = torch.from_numpy(np.stack([object_mask(scene) for scene in scenes])).unsqueeze(1)
        return weighted_mean(error, 1 + (OBJECT_WEIGHT - 1) * covered.float())

    @torch.no_grad()
    def report(self, step: int) -> str:
        """Validation loss, and a picture: originals above samples at guidance 1 and 2."""
        scenes = [sample_scene("validation", 0, i) for i in range(16)]
        rng = np.random.default_rng(0)
        images, captions = pictures(scenes), [write_caption(scene, rng, level="short") for scene in scenes]
        conditioning = self.condition(captions)
        loss = self.flow_loss(scenes, conditioning, torch.Generator().manual_seed(0))
        rows = [images] + [self.sample(conditioning, guidance) for guidance in (1.0, 2.0)]
        tiled = torch.cat([torch.cat(list(row), 2) for row in rows], 1).permute(1, 2, 0)
        Image.fromarray((tiled * 255).byte().numpy()).save(self.picture)
        return f"validation {loss.item():.4f}"

    def sample(self, conditioning: Conditioning, guidance: float, steps: int = 8) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(len(conditioning.states), *self.decoder.latent_shape, generator=generator)
        for sigma, after in zip(*(s := self.decoder.schedule(steps), s[1:]), strict=False):
            at = sigma.expand(len(x))
            velocity = self.decoder.velocity(x, at, conditioning)
            if guidance != 1:
                velocity = flow.guide(velocity, self.decoder.velocity(x, at, None), guidance)
            x = flow.euler_step(x, velocity, sigma, after)
        return self.decoder.decode_latents(x)
