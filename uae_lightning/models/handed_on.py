"""What a stage hands on of a part that learned by adapters: the adapters, and which weights they belong to.

weights/PART/
  base.json             the weights they belong to, by reference: a hub id, a folder, or the PART of an earlier stage
  adapter_config.json   of peft
  FILE                  the adapters, in the file that the part's library looks for
  SHA256SUMS

Of rank 32, in float32: 240 MB where the merged weights of Qwen2.5-VL-3B are 7.5 GB, 75 MB where those of SD3.5-medium
are 5 GB. The classes in `models` start from such a folder as from one with whole weights: they load the base and merge
into it, layer by layer.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uae_lightning.files import write_json
from uae_lightning.interfaces import Component
from uae_lightning.models.adapters import adapters_of, adapters_off, lora_layers
from uae_lightning.models.loading import read_object
from uae_lightning.models.quantization import Quantization, quantize_linears, round_weight
from uae_lightning.models.weight_files import SUMS, digest, seal, verify
from uae_lightning.paths import SHIPPED, resolve, weightless
from uae_lightning.types import LoRA

BASE = "base.json"
ADAPTER = "adapter_model.safetensors"
OF_PEFT = "base_model.model."  # that PeftModel puts before the names of adapters
PREFIX = "transformer."  # that diffusers puts before the names of a transformer's adapters
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """Weights as they lie on disk.

    Args:
        name: as they were named: a hub id, a folder, "shipped:...".
        place: the folder that is.
        folder: the one with whole weights, in the layout of its library; `place` itself where there are no adapters.
        adapters: folders of those to merge into them, in that order.
        root: how `folder` is named.
    """

    name: str
    place: Path
    folder: Path
    adapters: tuple[Path, ...]
    root: str

    def complete(self, model: nn.Module, blocks: Iterable[nn.Module], quantization: Quantization = "none") -> None:
        """Merges the adapters into a model that was loaded from `folder` and quantizes its blocks, in place.

        Block by block: weights as they were and as they become are never all in memory. A model without weights has
        nothing merged.

        Args:
            blocks: whose linear layers are quantized, and were where the adapters were trained.

        Raises:
            ValueError: an adapter is damaged or does not fit.
        """
        adapters = [] if weightless() else [Adapter(folder) for folder in self.adapters]
        layers = {name: module for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
        names = {id(layer): name for name, layer in layers.items()}
        for block in blocks:
            for name in [names[id(module)] for module in block.modules() if id(module) in names]:
                merge(adapters, name, layers.pop(name), in_block=True)
            quantize_linears(model, [block], quantization)
        for name, layer in layers.items():
            merge(adapters, name, layer, in_block=False)
        for adapter in adapters:
            adapter.check_all_merged()


def source_of(path: str | Path, files: list[str]) -> Source:
    """Where the weights are that `path` names, and what is to be merged into them.

    Args:
        files: as `paths.resolve` has them.

    Raises:
        FileNotFoundError: there is nothing, or the base of an adapter has gone.
        ValueError: the base of an adapter is not what it was.
    """
    place = folder = resolve(path, files)
    root = str(path)
    adapters: list[Path] = []
    while (folder / BASE).is_file():
        if folder in adapters:
            raise ValueError(f"{folder / BASE} is damaged: the adapter is its own base; copy the folder again")
        adapters.insert(0, folder)
        root, folder = find_base(folder, files)
    return Source(str(path), place, folder, tuple(adapters), root)


def find_base(adapter: Path, files: list[str]) -> tuple[str, Path]:
    """How the weights that adapters belong to are named, and where they are."""
    content = read_object(adapter / BASE)
    try:
        named, beside = str(content["base"]), content["beside"]
        near = beside is not None and (adapter / beside).exists()
        found = Path(os.path.normpath(adapter / beside)) if near else resolve(named, files)
    except KeyError as error:
        raise ValueError(f"{adapter / BASE} is damaged: copy the folder again (it has no {error})") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{adapter} holds adapters for {named!r}, which is not there any more: put it back, or name where it is "
            f"now under `base` in {adapter / BASE} ({error})"
        ) from error
    was, now = content.get("is") or {}, identity(found)
    if not weightless() and (changed := [key for key in was if key in now and was[key] != now[key]]):
        raise ValueError(
            f"{adapter} holds adapters for {found}, which has changed since ({changed[0]}): repeat the stage that "
            f"wrote {adapter}, or put the earlier weights back"
        )
    return str(found) if near else named, found


def identity(folder: Path) -> dict[str, Any]:
    """By what weights are known again without reading them: sizes, the list of sums, the revision on the hub."""
    found: dict[str, Any] = {
        file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.rglob("*.safetensors"))
    }
    if (folder / SUMS).is_file():
        found[SUMS] = digest(folder / SUMS)
    if folder.parent.name == "snapshots":
        found["revision"] = folder.name
    return found


def lora_of(adapter: Path) -> LoRA:
    """Rank and alpha of the adapters in a folder."""
    config = read_object(adapter / CONFIG)
    return LoRA(rank=config["r"], alpha=config["lora_alpha"])


# ------------------------------------------------------------------------------------------------ merging


class Adapter:
    """The LoRA matrices in a folder; each layer takes its own.

    Raises:
        ValueError: the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        verify(folder)
        self.folder, self.quantization = folder, read_object(folder / BASE)["quantization"]
        lora, self.matrices = lora_of(folder), read_state(folder)
        self.scaling = lora.alpha / lora.rank

    def delta(self, name: str) -> Tensor | None:
        """What is added to the weight of a layer, in float32 and flat [out, ..]: alpha / rank B A; None where it has
        no adapter. Each is given once."""
        names = [f"{name}.lora_{letter}.weight" for letter in "AB"]
        if not all(one in self.matrices for one in names):
            return None
        lora_a, lora_b = (self.matrices.pop(one).float().flatten(1) for one in names)
        return lora_b @ lora_a * self.scaling

    def check_all_merged(self) -> None:
        if self.matrices:
            raise ValueError(
                f"the adapters in {self.folder} do not fit the model in its base ({next(iter(self.matrices))}): copy "
                "the folder again"
            )


@torch.no_grad()
def merge(adapters: list[Adapter], name: str, layer: nn.Linear | nn.Conv2d, *, in_block: bool) -> None:
    """Adds adapters to a layer's weight, one after the other, each to what the weight was where it was trained."""
    for adapter in adapters:
        if in_block and isinstance(layer, nn.Linear):
            round_weight(layer, adapter.quantization)
        if (delta := adapter.delta(name)) is not None:
            weight = layer.weight
            if delta.numel() != weight.numel():
                raise ValueError(f"the adapters in {adapter.folder} do not fit the model in its base ({name})")
            layer.weight = nn.Parameter((weight.float() + delta.view_as(weight)).to(weight.dtype), requires_grad=False)


def read_state(adapter: Path) -> dict[str, Tensor]:
    """The adapters as peft names them; raises ValueError where their file is damaged."""
    files = sorted(adapter.glob("*.safetensors"))
    try:
        return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(files[0]).items()}
    except (SafetensorError, IndexError) as error:
        raise ValueError(f"the adapters in {adapter} are damaged: copy the folder again ({error})") from error


# ------------------------------------------------------------------------------------------------ writing


class AdaptedPart(Component):
    """A part that learns by adapters or as a whole, and hands on no more than that."""

    source: Source
    quantization: Quantization  # of the blocks

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """What has the adapters."""

    @abstractmethod
    def save_lora(self, folder: Path) -> None:
        """Write the adapters in the file that the part's library looks for."""

    def reference(self) -> AbstractContextManager[None]:
        return adapters_off(self.learner)

    def hand_on(self, folder: Path) -> None:
        if not lora_layers(self.learner):
            return self.save(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_lora(folder)
        save_adapter(folder, self.learner, self.source, self.quantization)

    def handed_on(self) -> list[nn.Parameter]:
        return adapters_of(self.learner) or list(self.parameters())


def save_adapter(folder: Path, model: nn.Module, source: Source, quantization: Quantization) -> None:
    """Writes what belongs to the adapters, which lie in a file in `folder` already, and seals it.

    Args:
        model: that has them.
        source: the weights that `model` started from.
        quantization: of its blocks while they were trained.
    """
    local = not source.name.startswith(SHIPPED) and Path(source.name).expanduser().exists()
    content = {
        "base": str(source.place.absolute()) if local else source.name,
        "beside": os.path.relpath(source.place, folder) if local else None,  # a run may be moved as a whole
        "quantization": quantization,
        "is": identity(source.place),
    }
    write_json(folder / BASE, content)
    write_config(folder, model, content["base"])
    seal(folder)


def write_config(folder: Path, model: nn.Module, base: str) -> None:
    trained = model.peft_config["default"]
    config = LoraConfig(r=trained.r, lora_alpha=trained.lora_alpha, base_model_name_or_path=base).to_dict()
    targets = trained.target_modules  # a set has another order in each process
    config["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    write_json(folder / CONFIG, config)


def save_peft(folder: Path, model: nn.Module, base: str) -> None:
    """Writes the adapters of a model as `PeftModel.from_pretrained` reads them.

    Args:
        base: what the weights are called that they belong to.
    """
    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(model)
    save_file({f"{OF_PEFT}{name}": tensor.cpu().contiguous() for name, tensor in state.items()}, folder / ADAPTER)
    write_config(folder, model, base)
