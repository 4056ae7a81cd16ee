"""A loss beside a stage's own: given in YAML to any stage, and added to its gradient steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uae_lightning.types import Batch

if TYPE_CHECKING:
    from uae_lightning.stages.common import Stage


class Auxiliary(ABC):
    """Base of auxiliary losses.

    Args:
        weight: what the loss is multiplied by.
    """

    name: str  # logged as train/NAME, before the weight
    trains: tuple[str, ...]  # components that it has gradients for
    decoder_forwards = 0  # for one picture of the stage's batch, counted as in `types.Work`

    def __init__(self, weight: float) -> None:
        self.weight = weight

    @abstractmethod
    def loss(self, stage: Stage, batch: Batch, generator: torch.Generator) -> Tensor:
        """[] of a rank's batch; `generator` is the same on all ranks, and another at each step."""

    def losses(self, stage: Stage, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """The loss in micro-batches that add up to it: where the stage steps by hand, each one is gone before the next
        is computed."""
        yield self.loss(stage, batch, generator)

    def begin(self, stage: Stage) -> None:  # noqa: B027  most have nothing to begin with
        """Before the first step, and again where a run is resumed; the parts are on their device."""

    def check(self, stage: Stage) -> None:
        """Raises ValueError where it has no gradients for what the stage trains."""
        if not set(self.trains) & set(stage.trained):
            raise ValueError(
                f"{type(self).__name__} trains {' and '.join(self.trains)}, {type(stage).__name__} trains "
                f"{' and '.join(stage.trained)} alone: take it out of model.init_args.auxiliaries"
            )

    def captions_of(self, batch: Batch) -> list[str]:
        """Those of a batch; a ValueError where a picture has none."""
        return batch.given_captions(type(self).__name__, "take it out of model.init_args.auxiliaries")
