"""WeightedSum: several rewards as one. A run has one reward; this is how it has two."""

from __future__ import annotations

from torch import nn

from uae_lightning.interfaces import Reward
from uae_lightning.ranges import Finite, check
from uae_lightning.types import RewardInput, RewardOutput


class WeightedSum(Reward):
    """Sum of weight x reward; the parts are the unweighted rewards by the names given here.

    Args:
        rewards: name -> reward.
        weights: name -> factor, for the same names.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, Finite]) -> None:
        super().__init__()
        if not rewards or rewards.keys() != weights.keys():
            raise ValueError(
                f"rewards and weights of a WeightedSum need the same names, at least one: "
                f"rewards has {sorted(rewards)}, weights has {sorted(weights)}"
            )
        for name, weight in weights.items():
            check(f"weights.{name}", Finite, weight)
        self.rewards = nn.ModuleDict(rewards)
        self.weights = dict(weights)

    def forward(self, inputs: RewardInput) -> RewardOutput:
        outputs = {name: reward(inputs) for name, reward in self.rewards.items()}
        total = sum(self.weights[name] * output.total for name, output in outputs.items())
        return RewardOutput(total, _parts(outputs), dict(self.weights))

    def title(self) -> str:
        return " + ".join(reward.title() for reward in self.rewards.values())


def _parts(outputs: dict[str, RewardOutput]) -> dict:
    """Each total by its name, and the parts of those that have several as NAME/PART."""
    parts = {}
    for name, output in outputs.items():
        parts[name] = output.total
        if len(output.parts) > 1:
            parts |= {f"{name}/{part}": value for part, value in output.parts.items()}
    return parts
