"""PixelSimilarity: no network at all; a floor for the others to beat and a second opinion in reports."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from uae_lightning.interfaces import Reward
from uae_lightning.rewards.vision_features import EmbeddingSimilarity
from uae_lightning.types import RewardInput, RewardOutput


class PixelSimilarity(Reward):
    """1 - mean |a - b| over pixels and channels, in [0, 1]; 1 for equal pictures, 0 for black against white.

    An object moved by its own width costs as much as two wrong ones: this judges places and colours of large areas,
    not content.
    """

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = 1 - (inputs.originals.float() - inputs.reconstructions.float()).abs().mean((1, 2, 3))
        return RewardOutput(total, {"pixel_similarity": total})


class Pixels(EmbeddingSimilarity):
    """Cosine of the pixels themselves, gray being the zero: no network, a second opinion on places and colors."""

    name = "pixels"

    def embed(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 3 H W]."""
        return F.normalize(images.float().flatten(1) - 0.5, dim=-1)
