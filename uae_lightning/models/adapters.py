"""LoRA through peft, used by encoder and decoder alike. The adapter-off network is the reference policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from uae_lightning.models.lora_product import use_one_product
from uae_lightning.models.quantization import dequantized, is_quantized
from uae_lightning.types import LoRA


def lora_config(lora: LoRA, default_targets: str | list[str]) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets or default_targets,
        init_lora_weights=lora.init,
        lora_dropout=0.0,  # dropout would make the ratio of new to old policy differ from 1 on policy
    )


def add_lora(
    model: nn.Module,
    lora: LoRA,
    default_targets: str | list[str],
    random_state: Tensor,
    *,
    one_product: bool = True,
) -> None:
    """Freeze `model` and inject trainable fp32 adapters in place.

    Args:
        random_state: of the CPU, from which they are drawn; that of the process stays as it is.
        one_product: compute as `lora_product` does where that is sound; not in blocks that are to share compiled code.

    Raises:
        ValueError: no module matches `targets`, or there are adapters already.
    """
    if lora_layers(model):
        raise ValueError(f"{type(model).__name__} has adapters already: a part is adapted once")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        inject_adapter_in_model(lora_config(lora, default_targets), model)
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
