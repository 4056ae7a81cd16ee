"""A codec that learns to draw what its latents leave open, and the stage that trains it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from staged import staged

from uae_lightning.interfaces import Reward
from uae_lightning.models.codec_folders import codec_of
from uae_lightning.models.codecs import LinearCodec
from uae_lightning.models.diffusion_codec import DiffusionCodec
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.stages.codec_pretrain import CodecPretrain
from uae_lightning.types import Learn, RewardInput, RewardOutput


class Closeness(Reward):
    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = -(inputs.originals - inputs.reconstructions).square().mean((1, 2, 3))
        return RewardOutput(total, {"closeness": total})


@pytest.fixture
def make_codec(parts_folder):
    def make(path: Path | None = None, **options) -> DiffusionCodec:
        torch.manual_seed(0)
        base = LinearCodec(str(parts_folder / "decoder"), "vae")
        return DiffusionCodec(base, None if path is None else str(path), **({"width": 8, "scale": 0.1} | options))

    return make


@pytest.fixture
def make_stage(make_codec, make_encoder, make_projector, make_decoder):
    def make(codec=None, **options) -> CodecPretrain:
        decoder = make_decoder(codec=codec or make_codec())
        stage = staged(CodecPretrain, make_encoder(), make_projector(), decoder, **options)
        stage.log = lambda *args, **kwargs: None
        return stage

    return make


def shake(codec: DiffusionCodec) -> DiffusionCodec:
    with torch.no_grad():
        codec.unet.conv_out.weight.normal_(std=0.1)
    return codec


@torch.no_grad()
def test_what_has_learnt_nothing_is_the_base_codec(make_codec, images):
    # red if the last layer does not begin at zero, or `steps: 0` asks the network
    codec = make_codec()
    latents = codec.encode(images)
    assert torch.equal(latents, codec.base.encode(images))
    assert codec.latent_shape(96, 48) == codec.base.latent_shape(96, 48)
    for steps in (0, 1, 3):
        codec.steps = steps
        torch.testing.assert_close(codec.decode(latents), codec.base.decode(latents).clamp(0, 1), atol=1e-6, rtol=0)
    shake(codec).steps = 0
    assert torch.equal(codec.decode(latents), codec.base.decode(latents))


@torch.no_grad()
@pytest.mark.parametrize("objective", ["flow", "regression"])
def test_decoding_is_a_function_of_the_latents(make_codec, images, objective):
    # red if it starts from a noise of its own for each call or each batch, or a regression from noise
    codec = shake(make_codec(objective=objective, steps=3))
    latents = codec.encode(images)
    decoded = codec.decode(latents)
    torch.testing.assert_close(codec.decode(latents[1:2]), decoded[1:2], atol=1e-5, rtol=1e-4)
    codec.steps = 1
    assert torch.allclose(codec.decode(latents), decoded, atol=1e-6) == (objective == "regression")
    codec.noise += 1
    assert torch.allclose(codec.decode(latents), decoded, atol=1e-6) == (objective == "regression")


@torch.no_grad()
def test_one_step_is_what_is_predicted_from_noise(make_codec, images):
    # red if Euler steps by another length, or training and decoding scale the residual otherwise
    codec = shake(make_codec())
    side = IMAGE_SIZE // 4
    noise = torch.nn.functional.pixel_shuffle(codec.noise[:, :side, :side].expand(4, -1, -1, -1), 4)
    _, restored = codec.restore(images, noise, torch.ones(4))
    torch.testing.assert_close(restored.clamp(0, 1), codec.decode(codec.encode(images)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["flow", "regression"])
def test_it_learns_what_the_base_codec_loses(make_stage, make_codec, images, objective):
    # red if the target is the picture in place of the residual, the base codec learns, or nothing does
    stage = make_stage(make_codec(objective=objective, width=16), perceptual=Closeness(), perceptual_weight=1.0)
    learnt = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert learnt and all(name.startswith("autoencoder.decoder.codec.unet") for name in learnt)
    batch = next(iter(ScenesData(batch_size=4).train_dataloader()))
    optimizer = torch.optim.AdamW(stage.codec.unet.parameters(), lr=3e-3)
    for step in range(30):
        stage.batches_seen.fill_(step)
        stage.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
    noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        base = stage.codec.base.decode(stage.codec.encode(batch.images))
        error, restored = stage.codec.restore(batch.images, noise, torch.full((4,), 0.5))
    lost = (batch.images - base).square().mean()
    assert error.mean() < 0.85 * lost / stage.codec.scale**2
    assert (restored - batch.images).square().mean() < 0.85 * lost


def test_two_steps_and_what_they_hand_on(make_stage, make_codec, tmp_path):
    # red if the stage's pictures are drawn from captions, or the decoder's folder does not say which codec it has
    stage = make_stage(make_codec(steps=2))
    before = {name: parameter.clone() for name, parameter in stage.named_parameters()}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_steps=2, max_epochs=-1, limit_val_batches=0, accelerator="cpu", **quiet)
    trainer.fit(stage, datamodule=ScenesData(batch_size=2))
    moved = {name for name, parameter in stage.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(".codec.unet." in name for name in moved)
    batch = next(iter(ScenesData(batch_size=2).train_dataloader()))
    shown = stage.validation_step(batch, 0).inputs.reconstructions
    stage.decoder.hand_on(tmp_path)
    again = SD3Decoder(str(tmp_path), resolution=IMAGE_SIZE)
    with torch.no_grad():
        assert again.codec.steps == 2 and again.codec.objective == "flow"
        assert torch.equal(again.decode_latents(again.encode_images(batch.images)), shown)
    assert codec_of(tmp_path, "float32").fingerprint() == stage.codec.fingerprint() == stage.codec.base.fingerprint()


def test_mistakes_are_named(make_stage, make_codec, make_decoder, parts_folder, tmp_path):
    # red if a codec that cannot learn trains nothing without a word, or a network meets other latents
    with pytest.raises(ValueError, match="LinearCodec does not learn: give model.autoencoder.decoder.codec"):
        make_stage(make_decoder().codec)
    with pytest.raises(ValueError, match="trains the codec alone: leave model.init_args.learn out"):
        make_stage(learn=Learn(decoder="all"))
    make_codec().save(tmp_path)
    with pytest.raises(ValueError, match="give `base` the codec that it was trained on"):
        DiffusionCodec(LinearCodec("shipped:scenes/decoder", "vae"), str(tmp_path))
    with pytest.raises(ValueError, match="width must be a multiple of 8"):
        make_codec(width=12)
