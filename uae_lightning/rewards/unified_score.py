"""UnifiedScore: the mean of several judges as one, the unified score of UAE (arXiv 2509.09666); for `unrewarded`."""

from __future__ import annotations

import torch
from torch import nn

from uae_lightning.interfaces import Reward
from uae_lightning.types import RewardInput, RewardOutput


class UnifiedScore(Reward):
    """Mean over the backbones; the parts are the backbones by the names given here.

    Args:
        backbones: name -> similarity of a vision network.
    """

    def __init__(self, backbones: dict[str, Reward]) -> None:
        super().__init__()
        if not backbones:
            raise ValueError("a UnifiedScore needs at least one of `backbones`")
        self.backbones = nn.ModuleDict(backbones)

    def forward(self, inputs: RewardInput) -> RewardOutput:
        parts = {name: backbone(inputs).total for name, backbone in self.backbones.items()}
        return RewardOutput(torch.stack(list(parts.values())).mean(0), parts)
