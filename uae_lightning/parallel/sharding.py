"""FSDP2: which modules are sharded together, and how to have their weights whole for a while.

A unit is what is gathered before its forward and released after it. Units are the repeated blocks of a part, and the
module that holds them, whose call they all start from: the language model, the vision tower, the diffusion transformer.
These are the modules that every way into a part goes through (captioning, teacher forcing, reading a caption alone,
sampling); a unit around more than them would not be entered by all of these ways, and its weights then be missing.

Not sharded, so whole on every device: frozen weights outside the blocks (embeddings, head, codec), and int8 weights,
which bitsandbytes keeps its own views of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from uae_lightning.interfaces import Component
from uae_lightning.parallel.collectives import rank


def shard(part: Component, mesh: DeviceMesh, precision: str = "32-true") -> None:
    """Shards a part over the devices of `mesh` [R], in place; a part that is sharded stays as it is.

    Args:
        precision: of the trainer. With "bf16-mixed" the weights are gathered in bfloat16, what autocast would make of
            them, which halves traffic and memory; gradients are averaged in float32.

    Raises:
        ValueError: the part has trainable weights outside its blocks and the modules that hold these.
    """
    if units(part):
        return
    options = {"mesh": mesh, "reshard_after_forward": True}
    if precision == "bf16-mixed":  # inputs keep their precision: a time step in bfloat16 is another time step
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in part.blocks():
        int8 = {parameter for parameter in block.parameters() if parameter.dtype == torch.int8}
        fully_shard(block, ignored_params=int8, **options)
    for holder in holders(part):
        frozen = {parameter for parameter in holder.parameters() if not parameter.requires_grad}
        fully_shard(holder, ignored_params={p for p in frozen if not isinstance(p, DTensor)}, **options)
    for name, parameter in part.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            raise ValueError(
                f"{type(part).__name__} cannot be sharded: {name} is trained but lies outside of its blocks(); "
                "train with --trainer.strategy ddp"
            )


def holders(part: Component) -> list[nn.Module]:
    """The modules with a list of blocks as a child; a projector has no blocks and is called itself."""
    blocks = set(part.blocks())
    if not blocks and part.entered_by_call:
        return [part] if any(parameter.requires_grad for parameter in part.parameters()) else []
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList) and blocks & set(module)]
    return [module for module in part.modules() if any(child in lists for child in module.children())]


def units(module: nn.Module) -> list[FSDPModule]:
    return [child for child in module.modules() if isinstance(child, FSDPModule)]


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside it every rank has all of the weights: one gather per unit, and no forward waits for another rank.

    For generation: without it the weights would be gathered anew for every token, and a rank whose captions end early
    would leave the others waiting. Does nothing where nothing is sharded.
    """
    sharded = units(module)
    for unit in sharded:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in sharded:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


@contextmanager
def whole_on_main(module: nn.Module, wanted: Iterable[nn.Parameter] | None = None) -> Iterator[None]:
    """Inside it the `wanted` parameters of rank 0, or all, are whole, on the CPU, gathered one after the other.

    For files that know nothing of ranks. All ranks must enter it; the other ranks' parameters stay as they are. It
    needs no room on the device for more than one parameter. Does nothing where nothing is sharded.
    """
    chosen = None if wanted is None else {id(parameter) for parameter in wanted}
    shards = [
        (child, name, parameter)
        for child in module.modules()
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False)
        if isinstance(parameter, DTensor) and (chosen is None or id(parameter) in chosen)
    ]
    for child, name, parameter in shards:
        full = parameter.detach().full_tensor()
        if rank() == 0:
            setattr(child, name, restored(child, full, parameter.requires_grad))
    try:
        yield
    finally:
        for child, name, parameter in shards:
            setattr(child, name, parameter)


def restored(module: nn.Module, full: torch.Tensor, trained: bool) -> nn.Parameter:
    """The parameter that a module had before it was sharded; packed 4-bit weights get their scales back."""
    if (scales := getattr(module, "quant_state", None)) is None or full.is_floating_point():
        return nn.Parameter(full.cpu(), trained)
    from bitsandbytes.nn import Params4bit  # where there are such weights it is loaded already

    options = {"quant_type": scales.quant_type, "blocksize": scales.blocksize, "bnb_quantized": True}
    return Params4bit(full, False, quant_state=scales, module=module, **options)
