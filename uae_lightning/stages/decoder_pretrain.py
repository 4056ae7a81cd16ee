"""Stage 1, decoder pre-training: projector and decoder learn to draw long captions by flow matching.

B pictures in the batch   L text positions   D conditioning width   C h w latents   sigma in (0, 1], 1 = noise
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.flow_sde import draw_noise
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.parallel.collectives import mean_over_ranks, own_rows, rank, ranks
from uae_lightning.ranges import Finite, ModeScale, Positive, ShareBelow1, checked
from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, Conditioning, RewardInput, ValidationOutput, Work


@checked
class DecoderPretrain(Stage):
    """Flow matching on given captions, weighted by pixels where the data says so; the encoder is frozen.

    From a cache (`uae cache`), latents and the encoder's states come with the batch.

    Args:
        autoencoder: without an encoder it is enough for batches from a cache.
        sigma_distribution: "logit_normal", "mode", "shifted_uniform" or "uniform"; `flow.sample_sigma` says what those
            of diffusers' SD3 scripts are here. Their default: "logit_normal" with a sigma_mean of 1.0986.
        sigma_shift: of "shifted_uniform" and "mode".
        sigma_mean, sigma_std: of "logit_normal"; 0 and 1 are the SD3 paper's.
        sigma_mode_scale: of "mode".
        loss_weighting: "none", "sigma_sqrt" or "cosmap": of the squared error by its sigma (`flow.velocity_weight`).
        precondition_outputs: the error is that of the predicted latents, sigma^2 times that of the velocity (diffusers'
            default).
        condition_dropout: share of samples trained without a caption, for classifier-free guidance.
        **parts: of `Stage`.
    """

    trained: tuple[str, ...] = ("projector", "decoder")
    latents_suffice = True

    def __init__(
        self,
        autoencoder: AutoEncoder,
        sigma_distribution: flow.SigmaDistribution = "logit_normal",
        sigma_shift: Positive = 3.0,
        sigma_mean: Finite = 0.0,
        sigma_std: Positive = 1.0,
        sigma_mode_scale: ModeScale = 1.29,
        loss_weighting: flow.LossWeighting = "none",
        precondition_outputs: bool = False,
        condition_dropout: ShareBelow1 = 0.1,
        **parts,
    ) -> None:
        super().__init__(autoencoder, **parts)
        self.levels = flow.sigma_levels(sigma_distribution, sigma_shift, sigma_mean, sigma_std, sigma_mode_scale)
        self.loss_weighting, self.precondition_outputs = loss_weighting, precondition_outputs
        self.condition_dropout = condition_dropout

    @staticmethod
    def work(options: Any) -> Work:
        return Work(3)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.step_loss(batch, condition_of(self.autoencoder, batch))

    def step_loss(self, batch: Batch, conditioning: Conditioning) -> Tensor:
        """Flow matching on the batch's pictures by `conditioning`, logged, and auxiliary losses.

        Raises:
            FloatingPointError: it is no number.
        """
        loss = flow_matching(
            self.autoencoder,
            batch,
            conditioning,
            self.generator(0),
            self.levels,
            self.condition_dropout,
            self.loss_weighting,
            precondition_outputs=self.precondition_outputs,
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the flow-matching loss is {loss.item()} at step {self.global_step}: lower the lr"
            )
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        if self.encoder is not None and self.encoder.control_texts:  # since the start or the last resume, on this rank
            self.log("data/control_texts", float(self.encoder.control_texts))
        return sum(self.auxiliary_losses(batch), loss)

    def validation_step(  # type: ignore[override]  # as in `Stage`
        self, batch: Batch, batch_idx: int
    ) -> ValidationOutput:
        """The round trip of pictures; samples of a cache have no pixels, and are drawn from their own captions."""
        if batch.latents is None:
            return super().validation_step(batch, batch_idx)
        generator = torch.Generator().manual_seed(1_000_000 + batch_idx * ranks() + rank())
        noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
        with torch.no_grad():
            originals = self.decoder.decode_latents(batch.latents)
            conditioning = condition_of(self.autoencoder, batch)
            images = self.autoencoder.draw(conditioning, noise)
        inputs = RewardInput(originals, images, batch.captions)
        return ValidationOutput(inputs, conditioning.mask.sum(1), batch.keys)


def flow_matching(
    autoencoder: AutoEncoder,
    batch: Batch,
    conditioning: Conditioning,
    generator: torch.Generator,
    levels: flow.SigmaLevels,
    condition_dropout: float,
    loss_weighting: flow.LossWeighting = "none",
    *,
    precondition_outputs: bool = False,
) -> Tensor:
    """The loss [] of a rank's batch; `generator` is the same on all ranks."""
    decoder, device = autoencoder.decoder, batch.images.device
    size = len(batch.images) * ranks()  # of the global batch
    dropped = own_rows(torch.rand(size, generator=generator)).to(device) < condition_dropout
    conditioning = conditioning.drop(dropped)  # [B, L, D]
    x0 = latents_of(autoencoder, batch)  # [B, C, h, w]
    noise = noise_by_row(x0, generator)
    sigma = own_rows(flow.sample_sigma(size, **levels, generator=generator, device=device))
    error = decoder.loss(x0, conditioning, noise, sigma)  # [B, 1, h, w]
    weight = flow.velocity_weight(sigma, loss_weighting, precondition_outputs=precondition_outputs)
    error = error * flow.per_sample(weight, error)
    return error.mean() if batch.weights is None else weighted_mean(error, batch.weights)


def noise_by_row(latents: Tensor, generator: torch.Generator) -> Tensor:
    """[B, C, h, w] for those of this rank, each from a seed of its own: those of other ranks may have another shape."""
    seeds = own_rows(torch.randint(2**63 - 1, (len(latents) * ranks(),), generator=generator))
    return draw_noise(latents.shape, [torch.Generator().manual_seed(seed) for seed in seeds.tolist()], latents.device)


def condition_of(autoencoder: AutoEncoder, batch: Batch) -> Conditioning:
    if batch.embedded is None:
        return autoencoder.read(batch.captions)
    return autoencoder.projector.conditioning(*batch.embedded)


@torch.no_grad()
def latents_of(autoencoder: AutoEncoder, batch: Batch) -> Tensor:
    return autoencoder.decoder.encode_images(batch.images) if batch.latents is None else batch.latents


def weighted_mean(error: Tensor, weights: Tensor) -> Tensor:
    """Mean [] of an error map [B, 1, h, w]; a latent counts as much as the heaviest of its pixels [B, 1, H, W].

    On several devices each divides by the same sum of weights: the mean of their results is the mean of all errors.

    Where the caption fixes what is drawn at a place, weights change how fast it is learnt and not what. Where it does
    not, they are a bias towards drawing what weighs more (measured: docs/lab-notes.md).
    """
    weights = F.adaptive_max_pool2d(weights, error.shape[2:])
    return (error * weights).sum() / mean_over_ranks(weights.sum())
