"""What is asked of a reward."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from uae_lightning.types import RewardInput, RewardOutput


class Reward(nn.Module, ABC):
    """How well pictures survived the round trip; frozen, in eval mode. Higher is better.

    Where its total has a gradient with respect to the reconstructions, `stages.cold_start` can learn by that too.
    """

    needs_originals: bool = True  # False: it judges pictures by their captions, and can where nothing is reconstructed
    skips_failures: bool = (
        False  # groups that it could not judge (NaN) are passed over in training; False: the run ends
    )

    @abstractmethod
    def forward(self, inputs: RewardInput) -> RewardOutput: ...

    def held_out(self) -> Reward:
        """What judges held-out pictures, all of captions that the encoder wrote."""
        return self

    def failure(self) -> str:
        """Why some of the last pictures that it could not judge, in words; "" where it does not know."""
        return ""

    def title(self) -> str:
        """For people who read figures."""
        return type(self).__name__
