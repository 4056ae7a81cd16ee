"""Stages of small models, and a Trainer that does no more than train them."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from staged import staged
from torch import Tensor

from uae_lightning.autoencoder import Captioning
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.common import Stage
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Learn, LoRA, RewardInput, RewardOutput, Sampling

SMALL = LoRA(rank=4, alpha=8)
ENCODER, PROJECTOR, DECODER = (f"autoencoder.{part}." for part in ("encoder", "projector", "decoder"))


def reward(inputs: RewardInput) -> RewardOutput:
    """Closeness of pixels, plus a little for the caption's length, so that captions matter to a random decoder."""
    total = 1 - (inputs.originals - inputs.reconstructions).abs().mean((1, 2, 3))
    total = total + 0.01 * torch.tensor([len(text.split()) for text in inputs.captions])
    return RewardOutput(total, {"test": total})


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(kind: type[Stage], **options) -> Stage:
        learn = {DecoderPretrain: Learn(projector="all", decoder="all"), EncoderRL: Learn(encoder=SMALL)}
        defaults = {
            "learn": learn.get(kind, Learn(decoder=SMALL)),
            "captioning": Captioning(1.0, 10),
            "sampling": Sampling(3),
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        }
        if kind is not DecoderPretrain:
            defaults |= {"group_size": 4, "micro_batch": 4}
        if kind is DecoderRL:
            defaults |= {"window": (0, 2), "clip": 1e-3}
        stage = staged(kind, make_encoder(), make_projector(), make_decoder(), **(defaults | options))
        stage.score = reward
        return stage

    return make


def fit(stage: Stage, steps: int = 2, callbacks: list[L.Callback] | None = None) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=callbacks,
    )
    trainer.fit(stage, datamodule=ScenesData(batch_size=2))
    return trainer


def snapshot(stage: Stage) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}


class Watch(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, stage, *_) -> None:
        self.rows.append(dict(stage.health))


def gradients_of_update(stage: Stage, rollout, advantages: Tensor, micro_batch: int) -> dict[str, Tensor]:
    """One update without a Trainer and without its optimiser step."""
    stage.policy.micro_batch = micro_batch
    stage.log = lambda *_, **__: None
    stage.backward_of_micro_batch = lambda loss: loss.backward()
    stage.optimizer_step_after_clipping = lambda: 0.0
    stage.zero_grad()
    stage.update(rollout, advantages)
    gradients = {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0
    return gradients
