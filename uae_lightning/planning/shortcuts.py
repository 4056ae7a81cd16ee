"""Equal calls cost the same: a network that is asked again, without gradient, is counted instead of run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers.cache_utils import Cache

from uae_lightning.interfaces import Component
from uae_lightning.models.adapters import lora_layers
from uae_lightning.planning.integers import known
from uae_lightning.planning.meter import Meter
from uae_lightning.types import Captions, RewardInput


@dataclass
class Cost:
    peak: int  # bytes above those alive before the call
    flops: int
    output: Any  # with a `Shape` for each tensor


@dataclass
class Shape:
    shape: torch.Size
    dtype: torch.dtype
    known: Tensor | None

    @classmethod
    def of(cls, value: Any) -> Any:
        return cls(value.shape, value.dtype, known(value)) if isinstance(value, Tensor) else value

    def fresh(self) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if self.known is not None:
            tensor.known = self.known
        return tensor


class Shortcut:
    """In place of the method `name` of `owner`: the first of several equal calls without gradient is run.

    Args:
        verb: every call adds its number of rows to the phase's `calls[verb]`; "" does not count.
        costs: shared with another method that costs the same.
    """

    def __init__(
        self, meter: Meter, owner: torch.nn.Module, name: str, verb: str = "", costs: dict[Any, Cost] | None = None
    ) -> None:
        self.meter, self.verb = meter, verb
        self.run: Callable = getattr(owner, name)
        self.adapters = lora_layers(owner)[:1]
        self.costs = {} if costs is None else costs
        self.largest = 0  # bytes of an output with gradient
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.verb:
            self.meter.now.calls[self.verb] += rows(args)
        if torch.is_grad_enabled():
            output = self.run(*args, **kwargs)
            self.largest = max(self.largest, output.nbytes if isinstance(output, Tensor) else 0)
            return output
        if any(isinstance(value, Cache) for value in kwargs.values()):  # which the call would change
            return self.run(*args, **kwargs)
        key = describe((args, kwargs, [layer.disable_adapters for layer in self.adapters]))
        if key not in self.costs:
            return self.measured(key, args, kwargs)
        cost = self.costs[key]
        self.meter.note(cost.peak)
        self.meter.now.flops += cost.flops
        return tree_map(lambda leaf: leaf.fresh() if isinstance(leaf, Shape) else leaf, cost.output)

    def measured(self, key: Any, args: Any, kwargs: Any) -> Any:
        meter, phase, alive = self.meter, self.meter.now, self.meter.alive
        (peak, flops), phase.peak = (phase.peak, phase.flops), alive
        output = self.run(*args, **kwargs)
        self.costs[key] = Cost(phase.peak - alive, phase.flops - flops, tree_map(Shape.of, output))
        phase.peak = max(peak, phase.peak)
        meter.note()
        return output


def run_one_of_equal_blocks(meter: Meter, part: Component) -> None:
    """The blocks of a part are alike: what one of them costs, the next one does."""
    kinds: dict[Any, dict[Any, Cost]] = {}
    for block in part.blocks():
        shapes = (type(block), *((name, tensor.shape, tensor.dtype) for name, tensor in block.named_parameters()))
        Shortcut(meter, block, "forward", costs=kinds.setdefault(shapes, {}))


def rows(args: tuple) -> int:
    """Captions, pictures or texts that a call is about."""
    for value in args:
        if isinstance(value, Captions):
            return len(value.texts)
    return len(args[0].captions) if isinstance(args[0], RewardInput) else len(args[0])


def describe(value: Any) -> Any:
    """All of the arguments of a call that its cost depends on, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if is_dataclass(value):
        return tuple(describe(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, (list, tuple)):
        return tuple(describe(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, describe(item)) for key, item in value.items())
    return len(value) if isinstance(value, str) else value
