"""`trainer.precision` for tensors that are on no GPU: the casts a GPU's autocast would make."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}
# "CUDA Ops that can autocast to float32" (PyTorch, docs of amp) that occur in such networks; the CPU's list lacks them.
# Replaced by name and not by a TorchFunctionMode: that is off where checkpointed blocks are run again.
IN_FLOAT32 = {
    F: ("cosine_similarity", "group_norm", "l1_loss", "layer_norm", "log_softmax", "mse_loss", "softmax"),
    torch: ("cumsum", "exp", "log", "pow", "prod", "rsqrt", "softmax", "sum"),
    torch.Tensor: ("cumsum", "exp", "log", "pow", "__pow__", "prod", "rsqrt", "softmax", "sum"),
}


def in_float32(function: Callable) -> Callable:
    """The function, but half-precision inputs are widened where autocast is on."""

    @functools.wraps(function)
    def widened(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        return function(*args, **kwargs)

    return widened


def _widened(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


@contextmanager
def autocast(precision: str, *, gpu: bool) -> Iterator[None]:
    """What a training step runs in: nothing, or autocast for "bf16-mixed" and "16-mixed"."""
    width, _, kind = str(precision).partition("-")
    with ExitStack() as stack:
        if kind == "mixed":
            stack.enter_context(torch.autocast("cpu", DTYPES[width]))
            for owner, names in IN_FLOAT32.items() if gpu else ():
                for name in names:
                    stack.enter_context(patch.object(owner, name, in_float32(getattr(owner, name))))
        yield
