"""A stage as its YAML describes it, without weights: built on the meta device, then given tensors that can be run."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from uae_lightning.planning.meter import Meter
from uae_lightning.planning.quantized import stand_in_for_quantized
from uae_lightning.stages.common import Stage


def build(cli: Any) -> tuple[Stage, L.Callback | None]:
    """The stage and its RewardCallback on the meta device, from what `stage_cli.parse_stage` returned."""
    config = cli.config.fit
    wanted = Namespace(model=config.model)
    wanted["trainer.callbacks"] = [c for c in config.trainer.callbacks or [] if c.class_path.endswith("RewardCallback")]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # weights that come by package
        made = cli._parser("fit").instantiate_classes(wanted)
    callbacks = made.trainer.callbacks
    return made.model, callbacks[0] if callbacks else None


def give_fake_tensors(module: nn.Module, mode: FakeTensorMode, meter: Meter) -> None:
    """Replaces every tensor of `module`, in place, by one of `mode`, which is on; tied ones stay tied."""
    stand_in_for_quantized(module)
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            made = fake_like(tensor, mode, meter)
            if isinstance(tensor, nn.Parameter):
                made._is_param = True  # what `nn.Parameter` makes of a tensor of another class
                made.requires_grad_(tensor.requires_grad)
            if hasattr(tensor, "stands_for"):
                made.stands_for = tensor.stands_for
            fakes[id(tensor)] = made
        return fakes[id(tensor)]

    for part in module.modules():
        part._compiled_call_impl = None  # a plan runs each operation for itself
        for tensors in (part._parameters, part._buffers, part.__dict__):
            for name, tensor in list(tensors.items()):
                if isinstance(tensor, Tensor):
                    tensors[name] = fake(tensor)


def fake_like(tensor: Tensor, mode: FakeTensorMode, meter: Meter) -> Tensor:
    """As `torch.empty_strided` gives it, which takes ten times as long; models have thousands of tensors."""
    if isinstance(tensor, FakeTensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    with torch._C._DisableTorchDispatch():
        bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        made = FakeTensor(mode, bare, torch.device("cpu"))
    meter.follow(made.untyped_storage())
    return made
