"""Replay: what a stage before knew, learnt again from the batch's own pairs of picture and caption, against
forgetting."""

from __future__ import annotations

import torch
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.ranges import Finite, ModeScale, Positive, ShareBelow1, checked
from uae_lightning.stages.auxiliary import Auxiliary
from uae_lightning.stages.common import Stage
from uae_lightning.stages.decoder_pretrain import condition_of, flow_matching
from uae_lightning.stages.rewrite_sft import cross_entropy
from uae_lightning.types import Batch


@checked
class DecoderReplay(Auxiliary):
    """The loss of stage 1 on the batch's captions and pictures: the decoder still draws what people write.

    Args:
        weight: what the loss is multiplied by.
        sigma_distribution, sigma_shift, sigma_mean, sigma_std, sigma_mode_scale, condition_dropout: as in
            DecoderPretrain.
    """

    name, trains = "decoder_replay", ("projector", "decoder")
    decoder_forwards = 3

    def __init__(
        self,
        weight: Positive,
        sigma_distribution: flow.SigmaDistribution = "logit_normal",
        sigma_shift: Positive = 3.0,
        sigma_mean: Finite = 0.0,
        sigma_std: Positive = 1.0,
        sigma_mode_scale: ModeScale = 1.29,
        condition_dropout: ShareBelow1 = 0.1,
    ) -> None:
        super().__init__(weight)
        self.levels = flow.sigma_levels(sigma_distribution, sigma_shift, sigma_mean, sigma_std, sigma_mode_scale)
        self.condition_dropout = condition_dropout

    def loss(self, stage: Stage, batch: Batch, generator: torch.Generator) -> Tensor:
        self.captions_of(batch)
        if batch.latents is None and not batch.has_images:
            raise ValueError(
                "DecoderReplay learns from pictures, and prompts have none: take it out of model.init_args.auxiliaries"
            )
        model = stage.autoencoder
        return flow_matching(model, batch, condition_of(model, batch), generator, self.levels, self.condition_dropout)


@checked
class EncoderReplay(Auxiliary):
    """Cross-entropy in nats per token, end-of-text included, of the batch's captions, given their pictures: the encoder
    still writes like them.

    Args:
        weight: what the loss is multiplied by.
    """

    name, trains = "encoder_replay", ("encoder",)

    def __init__(self, weight: Positive) -> None:
        super().__init__(weight)

    def loss(self, stage: Stage, batch: Batch, generator: torch.Generator) -> Tensor:
        texts, encoder = self.captions_of(batch), stage.autoencoder.reader
        if not batch.has_images:
            raise ValueError("EncoderReplay looks at pictures, and a cache has none: give data with pictures")
        with torch.no_grad():
            seen = encoder.see(batch.images)  # the vision tower is frozen
        return cross_entropy(encoder, seen, encoder.tokenize(texts, ended=True))
