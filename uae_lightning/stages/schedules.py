"""Learning rates over a stage: `lr_scheduler` of any stage. Those of torch fit, too; this one has a warm-up."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from uae_lightning.ranges import Count, Natural, Share, checked


@checked
class WarmUp(LambdaLR):
    """From near 0 up to the optimizer's rate, and from there on, or down.

    Args:
        optimizer: whose rates, one for each group of parameters, are multiplied.
        warmup: optimiser steps of a straight line up; the first step has 1 / warmup of the rate. 0: there is none.
        steps: optimiser steps of the stage, after which "linear" and "cosine" have come to `floor`.
        shape: what follows the warm-up: "constant", "linear" or "cosine".
        floor: share of the rate at the end.

    Raises:
        ValueError: the warm-up is as long as the stage.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: Natural = 0,
        steps: Count | None = None,
        shape: Literal["constant", "linear", "cosine"] = "constant",
        floor: Share = 0.0,
    ) -> None:
        if shape != "constant" and (steps is None or warmup >= steps):
            raise ValueError(
                f"WarmUp: a {shape} schedule needs `steps`, more than warmup ({warmup}): give it that of "
                f"trainer.max_steps, got {steps}"
            )
        self.warmup, self.steps, self.shape, self.floor = warmup, steps, shape, floor
        super().__init__(optimizer, self.factor)

    def factor(self, taken: int) -> float:
        """What the rate is multiplied by once so many steps are taken."""
        if taken < self.warmup:
            return (taken + 1) / self.warmup
        if self.shape == "constant" or self.steps is None:
            return 1.0
        done = min((taken - self.warmup) / (self.steps - self.warmup), 1.0)
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * left
