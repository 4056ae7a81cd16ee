"""Keys and values of a prompt that many captions share.

Their `update` can be repeated: activation checkpointing runs a block again in the backward pass, which a cache of
transformers would take for further tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class PromptReader(DynamicCache):
    """Keeps the keys and values of each layer while the prompt is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.read.setdefault(layer_idx, (keys, values))
        return keys, values

    def prefix(self, copies: int) -> DynamicCache:
        """What was read, `copies` of each prompt next to each other, as a cache that further tokens are added to."""
        cache = DynamicCache()
        for layer, (keys, values) in sorted(self.read.items()):
            cache.update(keys.repeat_interleave(copies, 0), values.repeat_interleave(copies, 0), layer)
        return cache


class FixedPrefix(DynamicCache):
    """A prefix for one pass over all further tokens, which it does not keep."""

    def __init__(self, reader: PromptReader, copies: int) -> None:
        super().__init__()
        self.layers = reader.prefix(copies).layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, keys], -2), torch.cat([layer.values, values], -2)
