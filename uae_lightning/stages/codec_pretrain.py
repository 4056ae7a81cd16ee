"""A stage of its own for a codec that draws what its latents leave open: pixels from latents, without any caption."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import LearningCodec, Reward
from uae_lightning.parallel.collectives import own_rows, ranks
from uae_lightning.ranges import Finite, NonNegative, Positive, checked
from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, RewardInput, ValidationOutput, Work


@checked
class CodecPretrain(Stage):
    """Squared error of what the codec restores, and what a judge with a gradient says of it. Nothing else learns.

    Args:
        autoencoder: whose decoder has a `LearningCodec`.
        perceptual: judges what the codec takes pictures for in training; None: there is none.
        perceptual_weight: of 1 less its total.
        sigma_mean, sigma_std: of the logit-normal noise levels (arXiv 2410.04081: 0 and 1).
        **parts: of `Stage`; `learn` stays empty.

    Raises:
        ValueError: the codec does not learn, or `learn` names a part.
    """

    trained = ("decoder",)

    def __init__(
        self,
        autoencoder: AutoEncoder,
        perceptual: Reward | None = None,
        perceptual_weight: NonNegative = 0.1,
        sigma_mean: Finite = 0.0,
        sigma_std: Positive = 1.0,
        **parts,
    ) -> None:
        super().__init__(autoencoder, **parts)
        if any(how is not None for how in vars(self.learn).values()):
            raise ValueError("CodecPretrain trains the codec alone: leave model.init_args.learn out")
        self.codec.adapt("all")
        self.levels = flow.sigma_levels("logit_normal", 1.0, sigma_mean, sigma_std, 0.0)
        self.perceptual = perceptual if perceptual is None else perceptual.eval().requires_grad_(False)
        self.perceptual_weight = perceptual_weight

    @staticmethod
    def work(options: Any) -> Work:
        """Of the decoder nothing: the codec's passes are not counted."""
        return Work(0)

    @property
    def codec(self) -> LearningCodec:
        return self.decoder.codec.by_learning()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """
        Raises:
            FloatingPointError: the loss is no number.
        """
        generator, size = self.generator(0), len(batch.images) * ranks()
        noise = own_rows(torch.randn(size, *batch.images.shape[1:], generator=generator)).to(batch.images.device)
        sigma = own_rows(flow.sample_sigma(size, **self.levels, generator=generator, device=noise.device))
        error, restored = self.codec.restore(batch.images, noise, sigma)
        loss = error.mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        if self.perceptual is not None:
            judged = self.perceptual(RewardInput(batch.images, restored.clamp(0, 1), batch.captions))
            unlike = 1 - judged.total.mean()
            self.log("train/perceptual", unlike, sync_dist=True)
            loss = loss + self.perceptual_weight * unlike
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the codec's loss is {loss.item()} at step {self.global_step}: lower the lr")
        return loss

    def validation_step(  # type: ignore[override]  # as in `Stage`
        self, batch: Batch, batch_idx: int
    ) -> ValidationOutput:
        """Pictures through the codec alone."""
        with torch.no_grad():
            images = self.decoder.decode_latents(self.decoder.encode_images(batch.images))
        tokens = torch.zeros(len(images), device=images.device)
        return ValidationOutput(RewardInput(batch.images, images, batch.captions), tokens, batch.keys)
