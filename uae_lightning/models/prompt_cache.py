"""What a model keeps of a prompt that many captions share: keys and values, or the states of linear attention.

What is used with gradient has an `update` that can be repeated: activation checkpointing runs a block again in the
backward pass, which a cache of transformers would take for further tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionLayer

ROOM = 64  # tokens for which memory is taken at a time


class PromptReader(DynamicCache):
    """Keeps what each layer computes while the prompt is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values
        self.convolved: dict[int, Tensor] = {}  # of linear attention: inputs of its convolution, [B, C, kernel]
        self.states: dict[int, Tensor] = {}  # and its state [B, heads, D, D]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.read.setdefault(layer_idx, (keys, values))
        return keys, values

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return None  # nothing stands before the prompt

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return None

    def update_conv_state(self, inputs: Tensor, layer_idx: int, *args: Any, conv_kernel_size: int) -> Tensor:
        # cut off on the left, or filled up: a copy, where a view would keep the inputs of the whole prompt in memory
        self.convolved.setdefault(layer_idx, F.pad(inputs, (conv_kernel_size - inputs.shape[-1], 0)))
        return inputs

    def update_recurrent_state(self, state: Tensor, layer_idx: int, *args: Any) -> Tensor:
        self.states.setdefault(layer_idx, state)
        return state

    def for_generation(self, copies: int, room: int = ROOM) -> Cache:
        """What was read, `copies` of each prompt next to each other, as a cache that further tokens are added to."""
        layers: dict[int, GrowingLayer | StateLayer] = {
            layer: GrowingLayer(*pair, copies, room) for layer, pair in self.read.items()
        }
        layers |= {layer: StateLayer(self.convolved[layer], state, copies) for layer, state in self.states.items()}
        return Cache(layers=[layers[layer] for layer in sorted(layers)])


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

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class StateLayer(LinearAttentionLayer):
    """Linear attention after the prompts; what is written here leaves the prompts as they are.

    Args:
        convolved: the last inputs of its convolution, [B, C, kernel].
        state: [B, heads, D, D].
        copies: of each prompt.
    """

    def __init__(self, convolved: Tensor, state: Tensor, copies: int) -> None:
        super().__init__()
        self.dtype, self.device, self.conv_kernel_size[0] = convolved.dtype, convolved.device, convolved.shape[-1]
        self.conv_states[0] = convolved.repeat_interleave(copies, 0)
        self.recurrent_states[0] = state.repeat_interleave(copies, 0)
        for there in (self.is_conv_states_initialized, self.is_recurrent_states_initialized, self.has_previous_state):
            there[0] = True

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        return self.conv_states[0], self.recurrent_states[0]


class FixedPrefix(DynamicCache):
    """A prefix for one pass over all further tokens, which it does not keep."""

    def __init__(self, reader: PromptReader, copies: int) -> None:
        super().__init__()
        self.layers = reader.for_generation(copies).layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, keys], -2), torch.cat([layer.values, values], -2)

    def is_recording_past(self, layer_idx: int) -> bool:
        return True  # else the convolution of a single token is written into the prefix

    def update_conv_state(self, inputs: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        return torch.cat([self.layers[layer_idx].conv_states[0], inputs], -1)

    def update_recurrent_state(self, state: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        return state


@dataclass(frozen=True)
class Prefix:
    """What stands before the captions of B pictures or prompts, read once."""

    reader: PromptReader  # keys and values
    last: Tensor  # [B, D] states that predict the first token
    position: Tensor  # [B] of the first token
    mask: Tensor | None  # [B, L] bool, False at padding; None where there is none

    def repeat(self, copies: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """(last, position, mask), `copies` of each row next to each other."""
        mask = None if self.mask is None else self.mask.repeat_interleave(copies, 0)
        return self.last.repeat_interleave(copies, 0), self.position.repeat_interleave(copies, 0), mask
