"""Activation checkpointing: keep what goes into a block, compute the inside again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """In place. The libraries' own switches act in train mode only, in which 8-bit layers compute differently and
    generation goes without its cache."""
    for block in blocks:
        block.forward = functools.partial(_forward, block.forward)


def _forward(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)  # there is no dropout
