"""The blocks of a model are alike: one of them is run, forward and backward, and stands for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from transformers.cache_utils import Cache, DynamicCache

from uae_lightning.models.adapters import lora_layers
from uae_lightning.models.prompt_cache import FixedPrefix, PromptReader
from uae_lightning.planning.meter import Meter
from uae_lightning.planning.sharding import GATHERED, REDUCED
from uae_lightning.planning.shortcuts import Cost, Shape, describe, measured


@dataclass
class Backward:
    """Of a block's backward pass."""

    kept: int  # bytes that the forward pass leaves for it
    peak: int = 0  # bytes above those alive when it begins
    flops: int = 0


Costs = dict[Any, tuple[Cost, Backward]]
KINDS: dict[Any, Costs] = {}  # of all plans of a process: stages share models


def run_one_of_equal_blocks(
    meter: Meter, blocks: Iterable[nn.Module], size: Callable[[nn.Module], int] = lambda block: 0
) -> None:
    """`size` is what a block's weights have in bytes when they are gathered; 0 for what lies whole on each device."""
    for block in blocks:
        block.forward = StandIn(meter, block, KINDS.setdefault(kind(block), {}), size(block))


def repeated_blocks(judge: nn.Module) -> list[nn.Module]:
    """Of a network that does not say which its blocks are."""
    lists = [module for module in judge.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists if len({type(block) for block in blocks}) == 1 for block in blocks]


def kind(block: nn.Module) -> tuple:
    """Of blocks that cost the same: the same modules, the same tensors, checkpointed or not."""
    modules = tuple((name, type(module)) for name, module in block.named_modules())
    tensors = [*block.named_parameters(), *block.named_buffers()]
    shapes = tuple((name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors)
    return modules, shapes, type(block.forward)


class StandIn:
    """In place of a block's `forward`.

    Args:
        costs: of calls of blocks of this kind.
        size: bytes that are gathered before each pass, forward and backward, if the block lies in parts.
    """

    def __init__(self, meter: Meter, block: nn.Module, costs: Costs, size: int) -> None:
        self.meter, self.run, self.costs, self.size = meter, block.forward, costs, size
        self.trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
        self.gradients = sum(parameter.nbytes for parameter in self.trained)
        self.adapters = lora_layers(block)[:1]
        attention = getattr(block, "self_attn", None) or getattr(block, "linear_attn", None)
        self.layer = getattr(attention, "layer_idx", None)  # in a cache

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = Call.of(args, kwargs, self.layer)
        needed = [*self.trained, *call.tensors()] if torch.is_grad_enabled() else []
        needed = [tensor for tensor in needed if tensor.requires_grad]
        key = describe((call.description(), [tensor.shape for tensor in needed], self.state()))
        if key not in self.costs:
            self.costs[key] = self.measured(call, needed)
        cost, backward = self.costs[key]
        outputs, form = tree_flatten(cost.output)
        places = [place for place, output in enumerate(outputs) if isinstance(output, Shape)]
        given = [outputs[place] for place in places]
        tensors = _Stand.apply(self, cost, backward, given, call.tensors(), *needed)
        for place, tensor in zip(places, tensors, strict=True):
            outputs[place] = tensor
        output, added = tree_unflatten(outputs, form)
        call.add_to_cache(added)
        return output

    def state(self) -> tuple:
        """What else the cost depends on."""
        accumulates = [parameter.grad is not None for parameter in self.trained[:1]]
        off = [layer.disable_adapters for layer in self.adapters]
        casts = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), F.softmax  # see planning.precision
        return accumulates, off, torch.is_grad_enabled(), casts

    def measured(self, call: Call, needed: list[Tensor]) -> tuple[Cost, Backward]:
        """Runs the block by itself; nothing of that stays: bytes and FLOPs are counted when it stands in."""
        meter, alive = self.meter, self.meter.alive
        peak, flops = meter.now.peak, meter.now.flops
        gradients = [parameter.grad for parameter in self.trained]
        with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):  # not those of checkpointed code around it
            cost, output = measured(meter, call.apart(), (self.run,), {})
            given = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            backward = Backward(max(0, meter.alive - alive - sum(tensor.nbytes for tensor in given)))
            if needed:
                roots = [tensor for tensor in given if tensor.requires_grad]
                along = [torch.empty_like(tensor) for tensor in roots]
                cost_back, _ = measured(meter, torch.autograd.backward, (roots, along), {})
                backward.peak, backward.flops = cost_back.peak, cost_back.flops
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        meter.now.peak, meter.now.flops = peak, flops
        return cost, backward


class _Stand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, block: StandIn, cost: Cost, backward: Backward, outputs: list, inputs: list, *needed: Tensor):
        block.meter.count(cost.peak, cost.flops, Counter({GATHERED: block.size}))
        ctx.block, ctx.cost = block, backward
        # what goes into a block stays until its backward pass, whether it is checkpointed or keeps activations; not so
        # where the code around it is checkpointed, which autograd knows of what is saved
        if needed:
            ctx.save_for_backward(torch.empty(backward.kept, dtype=torch.uint8), *inputs)
        ctx.shapes = [Shape.of(tensor) for tensor in needed]
        return tuple(output.fresh() for output in outputs)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        _ = ctx.saved_tensors  # what is checkpointed is computed again now
        exchanged = Counter({GATHERED: ctx.block.size, REDUCED: ctx.block.gradients if ctx.block.size else 0})
        ctx.block.meter.count(ctx.cost.peak, ctx.cost.flops, exchanged)
        return None, None, None, None, None, *(shape.fresh() for shape in ctx.shapes)


@dataclass
class Call:
    """A call of a block. What it finds in a cache (keys, values or states) is an argument, what it adds a result."""

    args: tuple
    kwargs: dict[str, Any]
    cache: Cache | None
    found: tuple[Tensor, ...]
    layer: int | None

    @classmethod
    def of(cls, args: tuple, kwargs: dict[str, Any], layer: int | None) -> Call:
        cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
        found = () if cache is None or isinstance(cache, PromptReader) else cache.layers[layer].found
        plain = {name: value for name, value in kwargs.items() if value is not cache or value is None}
        return cls(args, plain, cache, found, layer)

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs, self.found)) if isinstance(leaf, Tensor)]

    def description(self) -> Any:
        return describe((self.args, self.kwargs, self.found)), type(self.cache)

    def apart(self) -> Call:
        """The same call on tensors that no gradient leaves."""
        args, kwargs, found = tree_map(_apart, (self.args, self.kwargs, self.found))
        return replace(self, args=args, kwargs=kwargs, found=found)

    def __call__(self, run: Callable) -> tuple[Any, Any]:
        """(output, what stays of it in the cache)."""
        if self.cache is None:
            return run(*self.args, **self.kwargs), None
        fixed = isinstance(self.cache, FixedPrefix)
        probe = _Probe(self.found, fixed)
        output = run(*self.args, past_key_values=probe, **self.kwargs)
        return output, None if fixed else probe.kept(self.layer)

    def add_to_cache(self, kept: tuple | None) -> None:
        if kept is None:
            return
        pair, convolved, state = kept
        if isinstance(self.cache, PromptReader):
            held = ((self.cache.read, pair), (self.cache.convolved, convolved), (self.cache.states, state))
            for place, value in held:
                if value is not None:
                    place[self.layer] = value
        elif pair is not None:  # a state takes the place of the one before
            self.cache.layers[self.layer].update(*pair)


def _apart(leaf: Any) -> Any:
    return leaf.detach().requires_grad_() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


class _Probe(DynamicCache):
    """Gives a block what it would find in the cache, and sees what it adds."""

    def __init__(self, found: tuple[Tensor, ...], fixed: bool) -> None:
        super().__init__()
        self.found, self.fixed = found, fixed
        self.reader = PromptReader()  # keeps the first: activation checkpointing runs a block twice

    def kept(self, layer: int) -> tuple:
        """(keys and values, inputs of the convolution, state), None in place of those there are not."""
        reader = self.reader
        return reader.read.get(layer), reader.convolved.get(layer), reader.states.get(layer)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        added = self.reader.update(keys, values, layer_idx)
        return tuple(torch.cat(pair, -2) for pair in zip(self.found, added, strict=True)) if self.found else added

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.found[0] if self.found else None

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.found[1] if self.found else None

    def is_recording_past(self, layer_idx: int) -> bool:
        return self.fixed

    def update_conv_state(self, inputs: Tensor, layer_idx: int, *, conv_kernel_size: int) -> Tensor:
        self.reader.update_conv_state(inputs, layer_idx, conv_kernel_size=conv_kernel_size)
        return torch.cat([self.found[0], inputs], -1) if self.found else inputs

    def update_recurrent_state(self, state: Tensor, layer_idx: int) -> Tensor:
        return self.reader.update_recurrent_state(state, layer_idx)
