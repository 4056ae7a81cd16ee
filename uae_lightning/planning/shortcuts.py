"""Equal calls cost the same: what is asked again is counted instead of run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from uae_lightning.models.adapters import lora_layers
from uae_lightning.planning.integers import known
from uae_lightning.planning.meter import Meter
from uae_lightning.types import Captions, RewardInput


@dataclass
class Cost:
    peak: int  # bytes above those alive before the call
    flops: int
    calls: Counter
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
        adapted: whose adapters being on or off makes calls differ; None: those of `owner`.
    """

    def __init__(
        self, meter: Meter, owner: Any, name: str, verb: str = "", adapted: torch.nn.Module | None = None
    ) -> None:
        self.meter, self.verb = meter, verb
        self.run: Callable = getattr(owner, name)
        self.adapters = lora_layers(adapted or owner)[:1]
        self.costs: dict[Any, Cost] = {}
        self.largest = 0  # bytes of an output with gradient
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.verb:
            self.meter.now.calls[self.verb] += rows(args)
        if torch.is_grad_enabled():
            output = self.run(*args, **kwargs)
            self.largest = max(self.largest, output.nbytes if isinstance(output, Tensor) else 0)
            return output
        key = describe((args, kwargs, [layer.disable_adapters for layer in self.adapters]))
        if key not in self.costs:
            self.costs[key], output = measured(self.meter, self.run, args, kwargs)
            return output
        cost = self.costs[key]
        self.meter.count(cost.peak, cost.flops, cost.calls)
        return fresh(cost.output)


def measured(meter: Meter, run: Callable, args: Any, kwargs: Any) -> tuple[Cost, Any]:
    """What a call costs, and its output."""
    phase, alive = meter.now, meter.alive
    (peak, flops, calls), phase.peak = (phase.peak, phase.flops, phase.calls.copy()), alive
    output = run(*args, **kwargs)
    cost = Cost(phase.peak - alive, phase.flops - flops, phase.calls - calls, shapes(output))
    phase.peak = max(peak, phase.peak)
    meter.note()
    return cost, output


def shapes(output: Any) -> Any:
    """The output with a `Shape` in place of each tensor."""
    if is_dataclass(output) and not isinstance(output, type):
        return type(output)(*(shapes(getattr(output, field.name)) for field in fields(output)))
    if type(output) is tuple:
        return tuple(map(shapes, output))
    return tree_map(Shape.of, output)


def fresh(output: Any) -> Any:
    """The reverse of `shapes`, with new tensors."""
    if isinstance(output, Shape):
        return output.fresh()
    if is_dataclass(output) and not isinstance(output, type):
        return type(output)(*(fresh(getattr(output, field.name)) for field in fields(output)))
    if type(output) is tuple:
        return tuple(map(fresh, output))
    return tree_map(lambda leaf: leaf.fresh() if isinstance(leaf, Shape) else leaf, output)


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
    if isinstance(value, torch.Generator):
        return torch.Generator  # which one does not matter
    return len(value) if isinstance(value, str) else value
