"""LoRA through peft, used by encoder and decoder alike. The adapter-off network is the reference policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from uae_lightning.models.lora_product import use_one_product
from uae_lightning.models.quantization import dequantized, is_quantized
from uae_lightning.ranges import Count, checked


@checked
@dataclass
class LoRA:
    """Low-rank adapters (arXiv 2106.09685).

    Args:
        rank: of the update matrices.
        alpha: the update is scaled by alpha / rank.
        targets: a regular expression on full module names, or a list of name endings.
        init: peft's `init_lora_weights`; "gaussian" is the released UAE's.
    """

    rank: Count = 32
    alpha: Count = 64
    targets: str | list[str] | None = None
    init: str = "gaussian"

    def config(self, default_targets: str | list[str]) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.targets or default_targets,
            init_lora_weights=self.init,
            lora_dropout=0.0,  # dropout would make the ratio of new to old policy differ from 1 on policy
        )


def add_lora(model: nn.Module, lora: LoRA, default_targets: str | list[str], *, one_product: bool = True) -> None:
    """Freeze `model` and inject trainable fp32 adapters in place.

    Args:
        one_product: compute as `lora_product` does where that is sound; not in blocks that are to share compiled code.

    Raises:
        ValueError: no module matches `targets`.
    """
    model.requires_grad_(False)
    inject_adapter_in_model(lora.config(default_targets), model)
    if one_product:
        use_one_product(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def lora_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before adapters were added; does nothing without adapters."""
    layers = lora_layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_state(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict the model has without adapters, their update added to the weights; the model is not changed.

    Quantised weights become what they stand for: what was trained is what is saved.

    Args:
        dtype: of the result; None keeps each tensor's own (of a quantised one: that before it was).
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
    for name, module in model.named_modules():
        if is_quantized(module):
            for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
                del state[key]  # the weight in its packed form, its scales and codes
            state[f"{name}.weight"] = dequantized(module)
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight = state[f"{name}.weight"]
            delta = sum(module.get_delta_weight(adapter).float() for adapter in module.active_adapters)
            state[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    return {name: tensor.detach().to("cpu", dtype, copy=True).contiguous() for name, tensor in state.items()}


def to_dtype(name: str) -> torch.dtype:
    """ "float32", "bfloat16" or "float16" as a torch dtype."""
    return getattr(torch, name)
