"""Stand-ins for the layers of bitsandbytes: weights, what the backward pass keeps, and temporaries have their sizes.

Their kernels run on real memory only. Sizes follow `models.quantization` and bitsandbytes 0.50
(`MatMul4Bit`, `functional.quantize_4bit`); tests compare the weights with the real layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64  # weights that share a scale in NF4
SCALES_BLOCK = 256  # scales that share a scale of theirs (double quantisation)
NF4_TABLES = 4 * (16 + 256 + 1)  # fp32 per layer: levels of weights, levels of scales, the scales' mean


class Linear8bit(nn.Module):
    """int8 weights with one fp32 scale per output; activations are rounded to int8 on the way."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(linear.weight.shape, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scales", torch.empty(linear.out_features, dtype=torch.float32))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return _Int8Product.apply(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])


class Linear4bit(nn.Module):
    """NF4: two weights in a byte, an 8-bit scale per 64 of them, an fp32 scale per 256 of those."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        count = linear.weight.numel()
        blocks = -(-count // BLOCK)
        self.weight = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
        self.weight.stands_for = count
        self.register_buffer("scales", torch.empty(blocks, dtype=torch.uint8))
        self.register_buffer("more_scales", torch.empty(-(-blocks // SCALES_BLOCK), dtype=torch.float32))
        self.register_buffer("tables", torch.empty(NF4_TABLES, dtype=torch.uint8))
        self.bias = linear.bias
        self.shape, self.dtype = linear.weight.shape, linear.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return _Nf4Product.apply(x, self.shape, self.dtype, self.bias)


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        rounded = x.to(torch.float16).to(torch.int8)
        product = torch._int_mm(rounded, weight.t()).to(torch.float16)  # int32 first
        return (product if bias is None else product + bias.to(product.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.weight.to(torch.float32).to(grad.dtype), None, None


class _Nf4Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
        ctx.shape, ctx.dtype = shape, dtype
        weight = x.new_empty(shape, dtype=dtype)  # unpacked anew at every pass
        return F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return (grad.to(ctx.dtype) @ grad.new_empty(ctx.shape, dtype=ctx.dtype)).to(grad.dtype), None, None, None


STAND_INS = {"8bit": Linear8bit, "4bit": Linear4bit}


def stand_in_for_quantized(model: nn.Module) -> None:
    """In place of each linear layer that `models.quantization` marked, the layer it will be."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if kind := getattr(child, "quantization", None) if isinstance(child, nn.Linear) else None:
                setattr(parent, name, STAND_INS[kind](child))
