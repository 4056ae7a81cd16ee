"""Integers keep their values in a world of tensors without any.

Under `FakeTensorMode` tensors have shapes and no values, so code that looks at a value (where is the picture among the
tokens? how large is its grid of patches?) would stop. The integers and booleans that steer models are few and small:
each fake one gets a real twin on which the same operations are done. Floating-point numbers stay unknown; the few
answers that code wants of them are those of a healthy run: conditions hold, nothing went wrong.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
FREE = {torch.ops.prim.device.default}  # asked all the time, nothing is done
RESIZING = {  # the values of their inputs decide the shape of the output
    aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor, aten.unique_consecutive.default,
    aten.unique_dim.default, aten._unique2.default, aten.bincount.default,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
COUNTING = {aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full.default}  # integers by default
MANY = 2**20  # integers that steer a model are fewer
KINDS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class KnownIntegers(TorchDispatchMode):
    """Enter it inside a `FakeTensorMode`.

    Args:
        copies: how often each picture stands in a batch, side by side: what `unique_consecutive` would find out.
    """

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.copies = copies

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return self.apply(func, args, kwargs or {})

    def apply(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func is aten._local_scalar_dense.default:
            return self._number(args[0])
        if func in (aten.equal.default, aten.allclose.default):
            return True
        if func is aten.unique_consecutive.default and known(args[0]) is None:
            return self._without_copies(args[0])
        if func is aten.masked_select.default:
            func, args = aten.index.Tensor, (args[0], [args[1].expand_as(args[0])])
        if func in INDEXING:
            args = (args[0], [part for index in args[1] for part in self._positions(index)], *args[2:])
        if args and isinstance(args[0], FakeTensor) and known(args[0]) is None:  # nearly all: one look, no search
            return func(*args, **kwargs)
        twins = self._on_twins(func, args, kwargs)
        if func in RESIZING:
            if twins is None:
                raise ValueError(
                    f"a plan cannot follow {func}: the size of its result depends on values, which a plan has "
                    "not; let the part take that size from shapes, or leave the stage out of the YAML that is planned"
                )
            return tree_map(self._fake_of, twins)
        return _remember(func(*args, **kwargs), twins)

    def _on_twins(self, func, args, kwargs) -> Any:
        """The outputs of `func` on the twins of its inputs; None where a value is unknown."""
        if func is aten.empty.memory_format and prod(args[0]) > MANY:
            return None  # memory that is merely held, such as packed weights: its twin would be as large
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not tensors and kwargs.get("dtype") not in KINDS and func not in COUNTING:
            return None  # new floating-point numbers
        if any(known(tensor) is None for tensor in tensors) or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        with torch._C._DisableTorchDispatch():
            args, kwargs = tree_map(lambda leaf: known(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            return func(*args, **kwargs)

    def _fake_of(self, twin: Any) -> Any:
        return _remember(torch.empty(twin.shape, dtype=twin.dtype), twin) if isinstance(twin, Tensor) else twin

    def _number(self, tensor: Tensor) -> bool | int | float:
        """The value of a one-element tensor, or what it is in a healthy run."""
        twin = known(tensor)
        with torch._C._DisableTorchDispatch():
            return healthy(tensor.dtype) if twin is None else twin.item()

    def _positions(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask as the positions where it is True, a tensor for each of its dimensions; other indices as they are."""
        if index is None or index.dtype is not torch.bool:
            return [index]
        twin = known(index)
        with torch._C._DisableTorchDispatch():
            where = (torch.ones(index.shape, dtype=torch.bool) if twin is None else twin).nonzero(as_tuple=True)
        return [self._fake_of(positions) for positions in where]

    def _without_copies(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `unique_consecutive` gives where each picture stands `copies` times: pictures, index, counts."""
        with torch._C._DisableTorchDispatch():
            index = torch.arange(len(pictures)) // self.copies
            counts = index.bincount()
        return pictures[: len(counts)].clone(), self._fake_of(index), self._fake_of(counts)


class Numbers(TorchFunctionMode):
    """`torch.tensor` of a list that holds fake one-element tensors takes their values."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is torch.tensor:
            args = tree_map(lambda leaf: leaf.item() if isinstance(leaf, FakeTensor) else leaf, args)
        return func(*args, **(kwargs or {}))


def known(tensor: Tensor) -> Tensor | None:
    """The real twin of a fake tensor, a real one itself, None where the values are unknown."""
    return getattr(tensor, "known", None) if isinstance(tensor, FakeTensor) else tensor


def healthy(dtype: torch.dtype) -> bool | int | float:
    return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 0


def _remember(outputs: Any, twins: Any) -> Any:
    """Ties each fake integer output to its twin; where there is none, what was known before no longer holds."""
    fakes = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, FakeTensor)]
    reals = [None] * len(fakes)
    if twins is not None:
        reals = [leaf for leaf in tree_leaves(twins) if isinstance(leaf, Tensor)]
    for fake, twin in zip(fakes, reals, strict=True):
        if fake.dtype in KINDS:
            fake.known = twin
    return outputs
