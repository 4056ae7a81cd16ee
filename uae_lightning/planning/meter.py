"""Bytes alive and FLOPs done while code runs under `FakeTensorMode`, phase by phase."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from uae_lightning.planning.integers import FREE, KnownIntegers

aten = torch.ops.aten
# Operations with a temporary of the size of their input inside, where no tensor shows it.
HIDDEN_COPY = {aten.logsumexp.default}


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    """Five products of the forward's two: the scores again, and the gradients of value, scores, query and key."""
    return sdpa_flop_count(query.shape, key.shape, value.shape) * 5 // 2


def _int8_product(a: Tensor, b: Tensor, **kwargs: Any) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _triangular_solve(matrix: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> int:
    """Half of a product with a square matrix."""
    return matrix.shape[-1] * right.numel()


MORE_FLOPS = {  # what torch's own registry leaves out
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._int_mm: _int8_product,
    aten.linalg_solve_triangular: _triangular_solve,  # of a gated delta net
}


@dataclass
class Phase:
    peak: int = 0  # bytes alive at most
    flops: int = 0
    calls: Counter = field(default_factory=Counter)  # verb -> rows it was called with


class Meter(KnownIntegers):
    """Follows the storages that operations create, until they are freed; enter it inside the `FakeTensorMode`.

    Kernels' own workspaces are not seen, nor is what the allocator rounds up. (One mode with `KnownIntegers`, because
    each mode is asked at every operation, thousands of times a second.)
    """

    def __init__(self, copies: int = 1) -> None:
        super().__init__(copies)
        self.alive = 0
        self.phases: dict[str, Phase] = {}
        self.now = Phase()
        self._storages: set[int] = set()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside counts as `name`; phases can lie within each other, the inner one counts."""
        before, self.now = self.now, self.phases.setdefault(name, Phase())
        self.note()
        try:
            yield
        finally:
            self.now = before

    def note(self, more: int = 0) -> None:
        """Now `more` bytes than those alive are in use."""
        self.now.peak = max(self.now.peak, self.alive + more)

    def count(self, peak: int, flops: int, calls: Counter) -> None:
        """What is not run because it was measured before; `peak` bytes are above those alive."""
        self.note(peak)
        self.now.flops += flops
        self.now.calls += calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func in FREE:
            return func(*args, **kwargs)
        outputs = self.apply(func, args, kwargs)
        packet = func._overloadpacket
        count = MORE_FLOPS.get(packet) or flop_registry.get(packet)
        if count is not None:
            self.now.flops += count(*args, **kwargs, out_val=outputs)
        for output in (outputs,) if isinstance(outputs, Tensor) else tree_leaves(outputs):
            if isinstance(output, Tensor):
                self.follow(output.untyped_storage())
        if func in HIDDEN_COPY:
            self.note(args[0].numel() * args[0].element_size())
        return outputs

    def follow(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is freed."""
        key = id(storage)
        if key not in self._storages:
            self._storages.add(key)
            self.alive += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes()).atexit = False
            self.note()

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.alive -= size
