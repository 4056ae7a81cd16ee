"""8-bit and 4-bit weights of frozen layers, by bitsandbytes (LLM.int8 arXiv 2208.07339, NF4 arXiv 2305.14314).

Layers are swapped here, for both models alike: diffusers refuses bitsandbytes where there is no GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import bitsandbytes as bnb
import torch
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
            layer = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=linear.weight.dtype, quant_type="nf4")
    kind, options = (
        (bnb.nn.Int8Params, {"has_fp16_weights": False})
        if quantization == "8bit"
        else (bnb.nn.Params4bit, {"quant_type": "nf4", "module": layer})
    )
    layer.weight = kind(linear.weight.data, requires_grad=False, **options)
    layer.bias, layer.weight_dtype = linear.bias, linear.weight.dtype
    keep_layout(layer)
    return layer.to(linear.weight.device).eval()  # moving is what quantises


def keep_layout(model: nn.Module) -> None:
    """Lets the 4-bit layers of `model` keep the layout of their weights, in place.

    On CPUs with AVX512-BF16 bitsandbytes 0.50 packs them for another kernel, once a layer runs in eval mode: it then
    computes in bfloat16, cannot be differentiated, and raises where the input width is no multiple of the block size
    (64). A policy would sample other numbers than it replays, and train other ones again.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


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
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(module.weight_dtype)
    scales = weight.SCB if module.state.SCB is None else module.state.SCB  # they move at the first forward pass
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)).to(module.weight_dtype)
