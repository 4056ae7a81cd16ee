"""The embedded decoder: a small SD3 transformer over a PCA codec, trained from scratch on captions as the web has them.

It learns to draw every object, color, size, place and background, and to follow prompts often rather than always
(`scenes.web_captions`). Long captions are a small share, as wrong as the others; to read complete and true ones is left
to the first stage.
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
from uae_lightning.scenes.bootstrap.captioner import mixed_caption, scenes_encoder
from uae_lightning.scenes.bootstrap.drawing import drawing_figures
from uae_lightning.scenes.bootstrap.loop import train
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.data import caption_weights
from uae_lightning.scenes.prompts import is_held_out
from uae_lightning.scenes.scene import IMAGE_SIZE, Scene, pictures, sample_scene
from uae_lightning.scenes.web_captions import Noise, misremembered, misstated
from uae_lightning.stages.decoder_pretrain import weighted_mean
from uae_lightning.types import Conditioning, Sampling

PATCH, LATENT_CHANNELS = 16, 128
WIDTH, LAYERS, HEADS = 160, 6, 5
# level, detail, share of the captions
MIXTURE = [
    ("prompt", 1.0, 0.35), ("short", 1.0, 0.25), ("short", 0.8, 0.18), ("long", 0.6, 0.11), ("long", 1.0, 0.11)
]  # fmt: skip
SENTENCES_FROM = 1900  # steps; before, only the kinds of caption that are not long, at two thirds of the price
ANOTHER_OBJECT = 600  # steps after which scenes may hold one more, up to three
NOISE = Noise()
OBJECT_WEIGHT = 6.0  # of cells in which the caption puts an object: most are empty, and backgrounds are learnt at once
DROPPED_CONDITIONS = 0.1  # of the samples are unconditional, for classifier-free guidance
PARTS = 2  # of a batch, texts of like length together, so that less of it is padding


def fit_codec(seed: int = 0, count: int = 3000) -> PatchCodec:
    codec = PatchCodec(patch_size=PATCH, latent_channels=LATENT_CHANNELS)
    codec.fit(2 * pictures([sample_scene("train", seed, i) for i in range(count)]) - 1)
    return codec


def build_parts(folder: Path, seed: int, encoder_size: int) -> None:
    """Untrained decoder and projector, and the fitted codec, in the layout of diffusers."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=IMAGE_SIZE // PATCH,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=16,
        pos_embed_max_size=IMAGE_SIZE // PATCH,
        qk_norm="rms_norm",
    )
    transformer.save_pretrained(folder / "decoder" / "transformer")
    fit_codec(seed).save_pretrained(folder / "decoder" / "vae")
    # shift 3: backgrounds are decided above sigma 0.95, where an unshifted schedule spends one step in twenty
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "decoder" / "scheduler")
    MLPProjector(None, encoder_size, 2 * WIDTH, WIDTH, normalize=True).save(folder / "projector")


def train_decoder(
    output: Path, work: Path, *, encoder: Path, steps: int, batch_size: int = 64, seed: int = 0
) -> dict[str, int]:
    """Train decoder and projector on the states of `encoder`; saves `output/decoder` and `output/projector` (bf16).

    Where the CPU multiplies in bfloat16 the training does, in half of the time; the weights proper are float32.
    """
    reader = scenes_encoder(str(encoder))
    start = work / "start"
    if not (start / "projector" / "model.safetensors").exists():
        build_parts(start, seed, reader.hidden_size)
    half = torch.cpu._is_avx512_bf16_supported()
    reader.model.to(torch.bfloat16 if half else torch.float32)
    decoder = SD3Decoder(
        str(start / "decoder"), IMAGE_SIZE, dtype="bfloat16" if half else "float32", sigma_spacing="even"
    )
    decoder.codec.float()
    projector = MLPProjector(str(start / "projector")).to(decoder.dtype)
    for part in (decoder, projector):
        part.adapt("all")
    task = _DecoderTask(reader, projector, decoder, batch_size, seed, work)
    trained = nn.ModuleList([projector, decoder])
    matrices = [p for name, p in decoder.transformer.transformer_blocks.named_parameters()
                if p.ndim == 2 and "norm" not in name]  # fmt: skip
    seconds = train(
        trained, task.loss, steps=steps, lr=4e-3, work=work, ema_decay=0.999, matrices=matrices,
        report=task.report, report_every=500, save_every=200,
    )  # fmt: skip
    decoder.save(output / "decoder", torch.bfloat16)
    projector.save(output / "projector", torch.bfloat16)
    return {"seconds": round(seconds), "steps": steps, "images": steps * batch_size, "batch_size": batch_size}


def web_caption(scene: Scene, rng: np.random.Generator, noise: Noise = NOISE, *, long: bool = True) -> str:
    """A caption of `scene` as the web has it, never a prompt that is held out."""
    mixture = [kind for kind in MIXTURE if long or kind[0] != "long"]
    text = mixed_caption(misremembered(scene, rng, noise), rng, mixture)
    wrong = misstated(text, rng, noise)
    return text if is_held_out(wrong) else wrong


class _DecoderTask:
    def __init__(self, encoder: Encoder, projector: MLPProjector, decoder: SD3Decoder, batch_size, seed, work: Path):
        self.encoder, self.projector, self.decoder = encoder.eval(), projector, decoder
        self.batch_size, self.seed, self.work = batch_size, seed, work

    def loss(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 4, step])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        first = 4_000_000_000 + step * self.batch_size
        most = 1 + min(2, step // ANOTHER_OBJECT)
        scenes = [sample_scene("train", self.seed, first + i, max_objects=most) for i in range(self.batch_size)]
        captions = [web_caption(scene, rng, long=step >= SENTENCES_FROM) for scene in scenes]
        order = sorted(range(len(scenes)), key=lambda row: len(captions[row].split()))
        size = -(-len(order) // PARTS)
        losses = []
        for part in (order[first : first + size] for first in range(0, len(order), size)):
            kept = torch.from_numpy(rng.random(len(part)) >= DROPPED_CONDITIONS)
            told = [captions[row] for row in part]
            weights = caption_weights(told, OBJECT_WEIGHT).where(kept[:, None, None, None], 1.0)
            conditioning = self.condition(told).drop(~kept)
            losses.append(self.flow_loss([scenes[row] for row in part], conditioning, weights, generator))
        return {"flow": sum(losses) / len(losses)}

    def condition(self, captions: list[str]) -> Conditioning:
        with torch.no_grad():
            states, mask = self.encoder.embed(captions)
        return Conditioning(self.projector(states), mask)

    def flow_loss(
        self, scenes: list[Scene], conditioning: Conditioning, weights: Tensor, generator: torch.Generator
    ) -> Tensor:
        x0 = self.decoder.encode_images(pictures(scenes))
        noise = torch.randn(x0.shape, generator=generator)
        sigma = flow.sample_sigma(len(x0), distribution="shifted_uniform", shift=3.0, generator=generator)
        x, velocity = flow.interpolate(x0, noise, sigma)
        error = (self.decoder.velocity(x, sigma, conditioning) - velocity).square().mean(1, keepdim=True)
        return weighted_mean(error, weights)

    @torch.no_grad()
    def report(self, step: int) -> str:
        """Validation loss, what is drawn of captions and prompts, and a picture: originals above samples."""
        scenes = [sample_scene("validation", 0, i) for i in range(16)]
        rng = np.random.default_rng(0)
        images, captions = pictures(scenes), [write_caption(scene, rng, level="short") for scene in scenes]
        conditioning = self.condition(captions)
        weights = caption_weights(captions, OBJECT_WEIGHT)
        loss = self.flow_loss(scenes, conditioning, weights, torch.Generator().manual_seed(0))
        rows = [images] + [self.sample(captions, guidance) for guidance in (1.0, 2.0)]
        tiled = torch.cat([torch.cat(list(row), 2) for row in rows], 1).permute(1, 2, 0)
        Image.fromarray((tiled * 255).byte().numpy()).save(self.work / "samples.png")
        return f"validation {loss.item():.4f}  {drawing_figures(self.sample)}"

    @torch.no_grad()
    def sample(self, captions: list[str], guidance: float, steps: int = 8) -> Tensor:
        """[N, 3, 96, 96] in [0, 1]; the noise depends on the place in the list alone."""
        conditioning = self.condition(captions)
        noise = torch.randn(len(captions), *self.decoder.latent_shape, generator=torch.Generator().manual_seed(0))
        return self.decoder.decode_latents(self.decoder.draw(conditioning, noise, Sampling(steps, guidance)))
