"""Keys and values of a prompt that many captions share.

What is used with gradient has an `update` that can be repeated: activation checkpointing runs a block again in the
backward pass, which a cache of transformers would take for further tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

ROOM = 64  # tokens for which memory is taken at a time


class PromptReader(DynamicCache):
    """Keeps the keys and values of each layer while the prompt is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.read.setdefault(layer_idx, (keys, values))
        return keys, values

    def for_generation(self, copies: int, room: int = ROOM) -> Cache:
        """What was read, `copies` of each prompt next to each other, as a cache that further tokens are added to."""
        return Cache(layers=[GrowingLayer(*self.read[layer], copies, room) for layer in sorted(self.read)])


class GrowingLayer(DynamicLayer):
    """Writes a new token into room that is there; that of transformers copies the whole cache for every token.

    Args:
        keys, values: of the prompts, [B, heads, L, D].
        copies: of each prompt.
        room: tokens for which memory is taken at a time.
    """

    def __init__(self, keys: Tensor, values: Tensor, copies: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.room, self.length = room, keys.shape[-2]
        self.store = [tensor.repeat_interleave(copies, 0) for tensor in (keys, values)]
        self.show()

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + keys.shape[-2]
        for index, new in enumerate((keys, values)):
            held = self.store[index]
            if self.length > held.shape[-2]:
                more = max(self.room, self.length - held.shape[-2])
                self.store[index] = held = torch.cat([held, held.new_empty(*held.shape[:2], more, held.shape[-1])], -2)
            held[:, :, start : self.length] = new
        self.show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.store = [held[indices] for held in self.store]
        self.show()

    def show(self) -> None:
        self.keys, self.values = (held[:, :, : self.length] for held in self.store)


class FixedPrefix(DynamicCache):
    """A prefix for one pass over all further tokens, which it does not keep."""

    def __init__(self, reader: PromptReader, copies: int) -> None:
        super().__init__()
        self.layers = reader.for_generation(copies).layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, keys], -2), torch.cat([layer.values, values], -2)
