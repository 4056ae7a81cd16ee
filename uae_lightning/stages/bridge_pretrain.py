"""Stage 1 of a visual channel: the decoder learns to draw from features beside the text, the bridge to predict them.

B pictures in the batch   K places   E width of a feature
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Bridge
from uae_lightning.parallel.collectives import own_rows, ranks
from uae_lightning.ranges import NonNegative, Share, checked
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import Batch

OF_BRIDGE = 1  # purpose of its random numbers; 0 is the flow matching's


@checked
class BridgePretrain(DecoderPretrain):
    """Flow matching by text and visual features: true ones with noise for some pictures, predicted ones for the rest.

    Args:
        autoencoder: with a projector that is a `Bridge`, and a decoder that reads visual features.
        true_share: of the pictures, which are drawn from the features of their own.
        text_dropout: of these pictures, the share that is drawn from features alone: beside a complete caption they
            tell the decoder nothing, and it learns to pass over them (measured: docs/lab-notes.md).
        feature_noise: standard deviation of noise on the true features, as predictions are off, too.
        bridge_weight: of the bridge's loss.
        **options: of `DecoderPretrain`.

    Raises:
        ValueError: the projector predicts no features, or the decoder reads none.
    """

    latents_suffice = False

    def __init__(
        self,
        autoencoder: AutoEncoder,
        true_share: Share = 0.5,
        text_dropout: Share = 0.5,
        feature_noise: NonNegative = 0.1,
        bridge_weight: NonNegative = 1.0,
        **options,
    ) -> None:
        super().__init__(autoencoder, **options)
        _ = self.bridge
        if not autoencoder.decoder.reads_visual:
            raise ValueError(
                f"{type(autoencoder.decoder).__name__} draws from text alone: give model.autoencoder.decoder one that "
                "reads visual features, such as uae_lightning.models.visual_decoder.VisualSD3Decoder"
            )
        self.true_share, self.text_dropout = true_share, text_dropout
        self.feature_noise, self.bridge_weight = feature_noise, bridge_weight

    @property
    def bridge(self) -> Bridge:
        return self.projector.by_bridge()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        model, bridge = self.autoencoder, self.bridge
        true = model.visual_features(batch.images)  # [B, K, E]
        with torch.no_grad():
            states, mask = model.embed(batch.captions)
        generator, size = self.generator(OF_BRIDGE), len(true) * ranks()
        noise = own_rows(torch.randn(size, *true.shape[1:], generator=generator)).to(true)
        sigma, share = own_rows(torch.rand(size, 2, generator=generator)).to(true).unbind(1)
        loss = bridge.bridge_loss(states, mask, true, noise, sigma).mean()
        self.log("train/bridge", loss, sync_dist=True)
        conditioning = bridge.conditioning(states, mask)
        predicted = conditioning.visual
        assert predicted is not None  # a bridge predicts
        rows = (share < self.true_share)[:, None, None]
        visual = (true + self.feature_noise * noise).where(rows, predicted)
        conditioning = conditioning.drop(share < self.true_share * self.text_dropout)
        return self.step_loss(batch, replace(conditioning, visual=visual)) + self.bridge_weight * loss
