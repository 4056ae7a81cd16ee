"""8-bit and 4-bit weights of frozen layers, by bitsandbytes (LLM.int8 arXiv 2208.07339, NF4 arXiv 2305.14314).

Layers are swapped here, for both models alike: diffusers refuses bitsandbytes where there is no GPU.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Literal

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module
from torch import Tensor, nn

from uae_lightning.paths import weightless

Quantization = Literal["none", "8bit", "4bit"]


def quantize_linears(model: nn.Module, blocks: Iterable[nn.Module], quantization: Quantization) -> None:
    """Puts bitsandbytes layers in place of the `nn.Linear` of `blocks`, in place; the rest of `model` stays.

    Embeddings, norms and the head lie outside the blocks: they are small, and wrong most easily. Without weights the
    layers stay as they are and carry the word in `quantization`.
    """
    if quantization == "none":
        return
    # bitsandbytes rounds inputs to fp16 on the way to int8 and says so at every layer of every pass
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, _quantized(child, quantization))
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = quantization == "8bit", quantization == "4bit"  # read by peft


def round_weight(linear: nn.Linear, quantization: Quantization) -> None:
    """Gives a layer the weight that it would stand for if it were quantized, in place."""
    if quantization != "none":
        linear.weight.data = dequantized(_quantized(linear, quantization))


def _quantized(linear: nn.Linear, quantization: Quantization) -> nn.Linear:
    if weightless():
        linear.quantization = quantization
        return linear
    sizes = (linear.in_features, linear.out_features)
    with torch.device("meta"):
        if quantization == "8bit":  # threshold 0: no outlier columns, whose number would differ between batches
            layer = FrozenLinear8bit(*sizes, bias=False, has_fp16_weights=False, threshold=0.0)
        else:
            layer = FrozenLinear4bit(*sizes, bias=False, compute_dtype=linear.weight.dtype, quant_type="nf4")
    kind, options = (
        (bnb.nn.Int8Params, {"has_fp16_weights": False})
        if quantization == "8bit"
        else (bnb.nn.Params4bit, {"quant_type": "nf4", "module": layer})
    )
    layer.weight = kind(linear.weight.data, requires_grad=False, **options)
    layer.bias, layer.weight_dtype = linear.bias, linear.weight.dtype
    return layer.to(linear.weight.device).eval()  # moving is what quantises


def freeze_4bit(model: nn.Module) -> None:
    """Makes the 4-bit layers that transformers has put into `model` to ours, in place."""
    for module in model.modules():
        if type(module) is bnb.nn.Linear4bit:
            module.__class__ = FrozenLinear4bit


class FrozenLinear4bit(bnb.nn.Linear4bit):
    """`Linear4bit` that on a CPU has the weights that were quantized, whatever its width and mode.

    The kernel of bitsandbytes 0.50.2 for CPUs counts blocks anew in each row, where they were cut from the whole
    matrix: of a width that is no multiple of 64, such as 160 or the 3420 in the eye of Qwen2.5-VL, weights come back
    26% off in place of 9% (measured on Gaussian ones). With AVX512-BF16 its own layer packs them for another kernel,
    once it runs in eval mode: that one computes in bfloat16, cannot be differentiated, and raises at such widths. A
    policy would sample other numbers than it replays, and train other ones again.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        fix_4bit_weight_quant_state_from_module(self)  # which FSDP takes off the weight
        product = _Nf4Product.apply(x.to(self.compute_dtype), self.weight)
        return (product if self.bias is None else product + self.bias.to(product.dtype)).to(x.dtype)


class _Nf4Product(torch.autograd.Function):
    """x [.., in] with 4-bit weights [out, in], which are unpacked once more for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: bnb.nn.Params4bit) -> Tensor:
        ctx.weight = weight
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, unpacked(weight).to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ unpacked(ctx.weight).to(grad.dtype), None


def unpacked(weight: bnb.nn.Params4bit) -> Tensor:
    """[out, in], block by block, which no kernel can take for rows."""
    state = copy.copy(weight.quant_state)
    size, (blocks, rest) = state.shape, divmod(state.shape.numel(), state.blocksize)
    state.shape = torch.Size((1, size.numel()) if rest else (blocks, state.blocksize))
    return bnb.functional.dequantize_4bit(weight.data, state).view(size)


class FrozenLinear8bit(bnb.nn.Linear8bitLt):
    """`Linear8bitLt` that keeps no input for the backward pass.

    bitsandbytes 0.50 keeps it outside of autograd's saved tensors, where activation checkpointing cannot drop it, for
    the gradient of weights that have none here. For four pictures of SD3.5-large at 512 px that is 15 of 18.7 GB (`uae
    plan`). This one also computes the same in train and eval mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.CB is not None:
            self.init_8bit_state()
        return _Int8Product.apply(x, self.state.CB, self.state.SCB, self.bias)


class _Int8Product(torch.autograd.Function):
    """x [.., in] with int8 weights [out, in] and their scales [out]; x is rounded to int8 row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scales)
        rows, row_scales, _ = bnb.functional.int8_vectorwise_quant(x.flatten(0, -2).to(torch.float16))
        product = torch.ops.bitsandbytes.int8_scaled_mm.default(
            rows, weight, row_scales, scales, bias=bias, dtype=x.dtype
        )
        return product.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scales = ctx.saved_tensors
        return grad @ bnb.functional.int8_vectorwise_dequant(weight, scales).to(grad.dtype), None, None, None


def is_quantized(module: nn.Module) -> bool:
    return isinstance(module, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit))


def dequantized(module: nn.Module) -> Tensor:
    """The weight [out, in] that a quantised layer stands for, in the dtype it had before; the layer is not changed."""
    weight = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        return unpacked(weight).to(module.weight_dtype)
    scales = weight.SCB if module.state.SCB is None else module.state.SCB  # they move at the first forward pass
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)).to(module.weight_dtype)
