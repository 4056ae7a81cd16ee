"""LoRA through peft, used by encoder and decoder alike. The adapter-off network is the reference policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        ValueError: no module matches `targets`, or one that is no linear layer or convolution; or there are adapters
            already.
    """
    if lora_layers(model):
        raise ValueError(f"{type(model).__name__} has adapters already: a part is adapted once")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        inject_adapter_in_model(lora_config(lora, default_targets), model)
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and not isinstance(base_of(layer), (nn.Linear, nn.Conv2d)):
            raise ValueError(
                f"targets: {name} is a {type(base_of(layer)).__name__}; adapters are handed on for linear layers and "
                "2-D convolutions: name those alone"
            )
    if one_product:
        use_one_product(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def lora_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapters_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name]


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


class MergedState(Mapping[str, Tensor]):
    """The state dict that a model has without adapters, their update added to the weights; the model is not changed.

    A tensor is computed when it is asked for: all of them together are a second model in memory. Quantized weights
    become what they stand for: what was trained is what is saved.

    Args:
        dtype: of floating-point tensors; None keeps each tensor's own (of a quantized one: that before it was).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        layers = [(name, layer) for name, layer in model.named_modules() if not name.endswith(".base_layer")]
        self.layers = {f"{plain(name)}.weight": layer for name, layer in layers if rewritten(layer)}
        packed = {f"{name}." for name, layer in model.named_modules() if is_quantized(layer)}
        self.others = {}
        for name, tensor in model.state_dict().items():  # views, no copies
            of_packed = any(name.startswith(start) for start in packed) and not name.endswith(".bias")
            if "lora_" not in name and not of_packed and plain(name) not in self.layers:
                self.others[plain(name)] = tensor

    def __iter__(self) -> Iterator[str]:
        yield from self.others
        yield from self.layers

    def __len__(self) -> int:
        return len(self.others) + len(self.layers)

    def __getitem__(self, name: str) -> Tensor:
        tensor = merged_weight(self.layers[name]) if name in self.layers else self.others[name]
        return tensor.detach().to("cpu", self.written(tensor.dtype)).contiguous()

    def shapes(self) -> dict[str, Tensor]:
        """How each tensor will be, without data."""
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in self.others.items()}
        for name, layer in self.layers.items():
            base = base_of(layer)
            found[name] = (
                ((base.out_features, base.in_features), base.weight_dtype)
                if is_quantized(base)
                else (base.weight.shape, base.weight.dtype)
            )
        return {
            name: torch.empty(shape, dtype=self.written(dtype), device="meta") for name, (shape, dtype) in found.items()
        }

    def written(self, own: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and own.is_floating_point else own


def rewritten(layer: nn.Module) -> bool:
    """Whether the weight that is saved of a layer is another than it holds."""
    return isinstance(layer, BaseTunerLayer) or is_quantized(layer)


def plain(name: str) -> str:
    """The name of a module or tensor in a model without adapters."""
    return name.replace(".base_layer", "")


def base_of(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def merged_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer with the update of its adapters, unpacked where it is quantized; computed in float32."""
    base = base_of(layer)
    weight = dequantized(base) if is_quantized(base) else base.weight
    if not isinstance(layer, BaseTunerLayer):
        return weight
    delta = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
    return (weight.float() + delta).to(weight.dtype)


def to_dtype(name: str) -> torch.dtype:
    """ "float32", "bfloat16" or "float16" as a torch dtype."""
    return getattr(torch, name)
