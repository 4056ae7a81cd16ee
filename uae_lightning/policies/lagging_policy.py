"""A copy of what is trained that follows it at a distance: the policy that samples in DiffusionNFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LaggingPolicy:
    """Weights of the trainable parameters of a module, by name; empty until they are first used.

    Args:
        module: whose parameters are followed; it does not own the copies.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """weights <- decay * weights + (1 - decay) * parameters."""
        for name, parameter in self._parameters().items():
            weight = self.weights.get(name, parameter).to(parameter.device)
            self.weights[name] = torch.lerp(parameter.detach(), weight, decay)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside it the module computes with these weights; nothing may be trained there."""
        if not self.weights:
            self.follow(0.0)
        raw = {name: parameter.detach().clone() for name, parameter in self._parameters().items()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(raw)

    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters().items():
            parameter.data.copy_(weights[name])

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}
