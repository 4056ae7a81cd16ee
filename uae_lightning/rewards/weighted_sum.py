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
        judges_held_out: name of the one that judges held-out pictures alone, where the others only shape what is
            trained; None: the sum does.
    """

    def __init__(
        self, rewards: dict[str, Reward], weights: dict[str, Finite], judges_held_out: str | None = None
    ) -> None:
        super().__init__()
        if not rewards or rewards.keys() != weights.keys():
            raise ValueError(
                f"rewards and weights of a WeightedSum need the same names, at least one: "
                f"rewards has {sorted(rewards)}, weights has {sorted(weights)}"
            )
        for name, weight in weights.items():
            check(f"weights.{name}", Finite, weight)
        if judges_held_out is not None and judges_held_out not in rewards:
            raise ValueError(f"judges_held_out must be one of {', '.join(rewards)}, got {judges_held_out!r}")
        self.judges_held_out = judges_held_out
        self.rewards = nn.ModuleDict(rewards)
        self.weights = dict(weights)
        self.needs_originals = any(reward.needs_originals for reward in rewards.values())
        self.skips_failures = any(reward.skips_failures for reward in rewards.values())

    def forward(self, inputs: RewardInput) -> RewardOutput:
        outputs = {name: reward(inputs) for name, reward in self.rewards.items()}
        total = sum(self.weights[name] * output.total for name, output in outputs.items())
        return RewardOutput(total, _parts(outputs), dict(self.weights))

    def held_out(self) -> Reward:
        return self if self.judges_held_out is None else self.rewards[self.judges_held_out].held_out()

    def failure(self) -> str:
        return "; ".join(filter(None, (reward.failure() for reward in self.rewards.values())))

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
