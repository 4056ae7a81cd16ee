"""Stages on a decoder that is no flow over the whole picture."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.models.codecs import LinearCodec
from uae_lightning.models.mar import MARDecoder
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Learn, LoRA, RewardOutput, Sampling

GROUPS = {"group_size": 4, "micro_batch": 4}


@pytest.fixture
def make_stage(parts_folder, make_encoder, make_projector):
    def make(kind, learn: Learn, **options):
        torch.manual_seed(0)
        codec = LinearCodec(str(parts_folder / "decoder"), "vae")
        sizes = {"width": 32, "encoder_layers": 1, "decoder_layers": 1, "head_width": 32, "head_layers": 1}
        decoder = MARDecoder(None, IMAGE_SIZE, codec, conditioning_size=24, **sizes)
        options |= {"captioning": Captioning(1.0, 8), "sampling": Sampling(3), "learn": learn}
        stage = staged(kind, make_encoder(), make_projector(), decoder, **options)
        stage.score = lambda inputs: RewardOutput((found := inputs.reconstructions.mean((1, 2, 3))), {"light": found})
        return stage

    return make


@pytest.mark.parametrize(
    ("kind", "learn", "options"),
    [
        (DecoderPretrain, Learn(projector="all", decoder="all"), {"condition_dropout": 0.5}),
        (EncoderRL, Learn(encoder=LoRA(4, 8)), GROUPS),
        (DecoderMatching, Learn(decoder="all"), GROUPS | {"updates_per_batch": 2, "objective": "awm", "clip": 1.0}),
        (DecoderMatching, Learn(decoder="all"), GROUPS | {"objective": "nft"}),
    ],
    ids=["pretrain", "encoder_rl", "awm", "nft"],
)
def test_stages_train_and_draw_with_it(make_stage, kind, learn, options):
    # red if a stage asks for velocities or a schedule where `regression` and `draw` are enough
    stage = make_stage(kind, learn, **options)
    trained = {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_steps=2, max_epochs=-1, limit_val_batches=0, accelerator="cpu", **quiet)
    trainer.fit(stage, datamodule=ScenesData(batch_size=2))
    moved = {name for name, p in stage.named_parameters() if name in trained and not torch.equal(p, trained[name])}
    assert moved and all(torch.isfinite(p).all() for p in stage.parameters())
    if kind is DecoderPretrain:
        assert moved == {*trained}  # each weight of encoder, decoder and head had a gradient
        outputs = stage.validation_step(next(iter(ScenesData(batch_size=2).train_dataloader())), 0)
        assert outputs.inputs.reconstructions.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_flow_grpo_is_refused(make_stage):
    # red if the message does not come before a step of a sampler that the decoder does not have
    stage = make_stage(DecoderRL, Learn(decoder="all"), **GROUPS)
    with pytest.raises(ValueError, match="MARDecoder is no decoder by flow matching"):
        stage.training_step(next(iter(ScenesData(batch_size=2).train_dataloader())), 0)
