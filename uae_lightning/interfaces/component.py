"""What every part has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.types import Learning


class Component(nn.Module, ABC):
    """A part with weights of its own that one stage can hand to the next."""

    entered_by_call = False  # every way into the part is a call of the part itself

    def __init__(self) -> None:
        super().__init__()
        self.random_state = torch.get_rng_state()  # adapters are drawn from it, whatever was built in between

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the part in the format of its library (safetensors), adapters merged; its class can start from it."""

    def hand_on(self, folder: Path) -> None:
        """Write what a stage trained, as small as can be, so that the class of the part can start from it: where all
        else is to be had elsewhere, the adapters alone."""
        self.save(folder)

    def handed_on(self) -> list[nn.Parameter]:
        """What `hand_on` writes: ranks that hold shares of it gather nothing else."""
        return list(self.parameters())

    def adapt(self, learning: Learning) -> None:
        """Makes trainable what a stage trains of the part, and nothing else; it is called before weights are sharded.

        Raises:
            ValueError: the part cannot learn in this way.
        """
        if learning not in ("all", None):
            raise ValueError(f"{type(self).__name__} has no adapters, it learns as a whole or not at all: all or null")
        self.requires_grad_(learning == "all")

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the adapters are off: the part is the one the stage started from."""
        return nullcontext()

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        """What its outputs depend on, name -> value; a cache is stale where one differs.

        Args:
            adapters: are read too.
        """
        return {"weights": digest_of(self, adapters), "dtype": dtypes(self, adapters)}

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks: units of sharding, of activation checkpointing and of compilation."""
        return []
