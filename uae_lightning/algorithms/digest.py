"""Which weights a module has, in a few letters."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def digest_of(module: nn.Module, adapters: bool = True) -> str:
    """Hash of all weights: names, dtypes, shapes and bytes; with `adapters` False of those without LoRA."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in _state(module, adapters):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def dtypes(module: nn.Module, adapters: bool = True) -> str:
    """Those of the weights, such as "bfloat16" or, quantised, "bfloat16, float32, uint8"."""
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for _, tensor in _state(module, adapters)}))


def _state(module: nn.Module, adapters: bool) -> list[tuple[str, torch.Tensor]]:
    return sorted((name, tensor) for name, tensor in module.state_dict().items() if adapters or "lora_" not in name)
