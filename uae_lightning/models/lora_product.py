"""LoRA in one matrix product: x (W + s B A)^T, where peft computes x W^T + s (x A^T) B^T in three and adds them up.

Only where the frozen weight W is float32: rounded to bfloat16, or packed in 8 or 4 bits, the sum would lose most of
what a small update says, and captions would come from another policy than the one that is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoRALinear
from torch import Tensor, nn


def use_one_product(model: nn.Module) -> None:
    """Makes the LoRA layers of `model` compute in one product where they can, in place.

    Each then has a `forward` of its own, which torch.compile takes for another program: blocks would share no graph.
    """
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.forward = OneProduct(layer)


@contextmanager
def merged_while(model: nn.Module) -> Iterator[None]:
    """Inside it the sums W + s B A are computed already, which pays where layers are called with few rows many times.

    It takes as much memory as the weights that have adapters. Nothing may be trained inside.
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, LoRALinear) and isinstance(layer.forward, OneProduct):
                stack.enter_context(layer.forward.merged_while())
        yield


class OneProduct:
    """In place of the `forward` of a LoRA layer of peft."""

    def __init__(self, layer: LoRALinear) -> None:
        self.layer, self.three_products, self.sum = layer, layer.forward, None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.layer.get_base_layer()
        if self.sum is not None:
            return F.linear(x, self.sum, base.bias)
        if not self.applies(base, x):
            return self.three_products(x, *args, **kwargs)
        return _LoRAProduct.apply(x, base.weight, base.bias, *self.factors())

    def applies(self, base: nn.Linear, x: Tensor | None = None) -> bool:
        device = base.weight.device.type
        return (
            base.weight.dtype == torch.float32
            and (x is None or x.dtype == torch.float32)
            and not self.layer.disable_adapters
            and not torch.is_autocast_enabled(device)
        )

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """A [r, in], B [out, r] and the scale s."""
        (name,) = self.layer.active_adapters
        return self.layer.lora_A[name].weight, self.layer.lora_B[name].weight, self.layer.scaling[name]

    @contextmanager
    def merged_while(self) -> Iterator[None]:
        base = self.layer.get_base_layer()
        self.sum = _sum(base.weight, *self.factors()).detach() if self.applies(base) else None
        try:
            yield
        finally:
            self.sum = None


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.addmm(weight, b, a, alpha=scale)


class _LoRAProduct(torch.autograd.Function):
    """The sum is computed again in the backward pass: it is cheap beside a product with all rows of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, _sum(weight, a, b, scale), bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, a, b = ctx.saved_tensors
        grad_x = grad @ _sum(weight, a, b, ctx.scale) if ctx.needs_input_grad[0] else None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        grad_a = (grad @ b).T @ x
        grad_b = grad.T @ (x @ a.T)
        return grad_x, None, None, grad_a.mul_(ctx.scale), grad_b.mul_(ctx.scale), None
