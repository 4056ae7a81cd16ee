"""A policy: a part that acts and can say how likely its acts were.

P prompts (a picture to caption, or a caption to draw)   G acts of each (a group), N = P * G, side by side
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from uae_lightning.algorithms.advantages import AdvantageScale
from uae_lightning.algorithms.policy_loss import disjoint_parts
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.types import RewardOutput

Acts = TypeVar("Acts")


class Randomness(Protocol):
    """Of one batch of a run. A stage is one."""

    batches_seen: Tensor  # [] of the run, this one included

    @property
    def global_rank(self) -> int: ...
    def step_seed(self, purpose: int, place: int = 0) -> int: ...
    def generator(self, purpose: int) -> torch.Generator: ...
    def generators(self, purpose: int, size: int) -> list[torch.Generator]: ...


class Policy(ABC, Generic[Acts]):
    """What a stage that learns from a reward asks of what it trains.

    Args:
        autoencoder: whose parts act.
        group_size: acts per prompt, G.
        micro_batch: acts per forward and backward pass; must divide P * G.
        advantage_scale: what advantages are divided by (`algorithms.advantages`).
        advantage_clip: advantages are clipped to this size.
    """

    def __init__(
        self,
        autoencoder: AutoEncoder,
        group_size: int,
        micro_batch: int,
        advantage_scale: AdvantageScale,
        advantage_clip: float = math.inf,
    ) -> None:
        self.autoencoder, self.group_size, self.micro_batch = autoencoder, group_size, micro_batch
        self.advantage_scale, self.advantage_clip = advantage_scale, advantage_clip

    @staticmethod
    def check(options: Any) -> None:
        """Raises ValueError where options train nothing together; they are attributes of a policy, with `captioning`
        and `sampling`, or as they were parsed."""

    @abstractmethod
    def act(self, context: Any, randomness: Randomness) -> Acts:
        """G acts for each of P prompts."""

    def rewards(self, acts: Acts, scores: RewardOutput) -> RewardOutput:
        """What is compared within the groups: the scores of N acts, or what a policy makes of them."""
        return scores

    def passes(self, acts: Acts) -> int:
        """Passes through the model that an update takes for each act: steps of a sampler, or draws."""
        return 1

    @abstractmethod
    def weights(self, acts: Acts) -> tuple[Tensor, Tensor]:
        """How much each element of the loss counts ([N], or [N, T]) and each act in the means of metrics ([N]), in each
        pass (float64). Both sum to 1 (or less) over all acts and passes: micro-batches add up to one big batch."""

    @abstractmethod
    def loss(
        self, acts: Acts, rows: Tensor, index: int, advantages: Tensor, *, first: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [n] or [n, T] of n acts in the pass `index`, not reduced, and metrics [].

        Args:
            first: the policy is still the one that acted; `first_log_ratio_max` among the metrics then says how far
                acting and scoring are apart.
        """

    def figures(self, acts: Acts) -> dict[str, float]:
        """What is worth watching of the acts themselves, by name."""
        return {}

    @property
    def captioning(self) -> Any:
        return self.autoencoder.captioning

    @property
    def sampling(self) -> Any:
        return self.autoencoder.sampling

    def micro_batches(self, size: int) -> list[Tensor]:
        return list(torch.arange(size, device=self.autoencoder.device).split(self.micro_batch))

    def dealt(self, size: int, parts: int, seed: int) -> list[list[Tensor]]:
        """The micro-batches of `size` acts in disjoint parts, for an optimiser step on each."""
        batches = self.micro_batches(size)
        return [[batches[place] for place in part] for part in disjoint_parts(len(batches), parts, seed)]


def evenly(size: int, passes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`Policy.weights` where all acts and passes count the same."""
    share = 1 / (size * passes)
    return torch.full((size,), share, device=device), torch.full((size,), share, device=device, dtype=torch.float64)
