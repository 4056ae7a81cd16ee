"""The adapters that a run trained, as one adapter on weights that others can get.

A run merges the adapter of each stage into the weights that it hands on. Where several stages trained one part, the
adapter of the last is relative to weights that exist in that run alone. The updates of all of them add up:

    W + s1 B1 A1 + s2 B2 A2  =  W + [s1 B1, s2 B2] [A1; A2],        s = alpha / rank

so the rounds stacked are one adapter of rank r1 + r2 on the weights W that the first of them started from. That is
exact but for the rounding of sums, and for that of merging where the weights are of half precision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from uae_lightning.models.handed_on import lora_of, source_of
from uae_lightning.models.weight_files import verify
from uae_lightning.run.loading import last_config, read_autoencoder
from uae_lightning.run.spec import read_stage_yaml
from uae_lightning.types import LoRA
from uae_lightning.usage import UsageError

FILES = {"encoder": "adapter_model.safetensors", "decoder": "pytorch_lora_weights.safetensors"}  # of `Component.save`
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """`up[name] @ down[name] * alpha / rank` is added to the weight of the linear layer `name`.

    `down` is [rank, in] and `up` [out, rank].
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under the names that peft and diffusers share."""
        named = [{f"{prefix}{k}{end}": t for k, t in part.items()} for part, end in ((self.down, DOWN), (self.up, UP))]
        return {name: tensor.contiguous() for part in named for name, tensor in sorted(part.items())}

    def config(self, base: str) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=sorted(self.down),
            lora_dropout=0.0,
            base_model_name_or_path=base,
            inference_mode=True,
        )


@dataclass(frozen=True)
class History:
    """How a run came to the weights of one part."""

    base: str  # what the first round started from, as its YAML names it; or a folder of the run
    trained_in_full: str | None  # the stage that wrote `base`, training all weights
    rounds: list[tuple[str, Adapter]]  # stage and what it trained on top, in order

    @property
    def start(self) -> str:
        return f"stage {self.trained_in_full}, all weights trained" if self.trained_in_full else self.base

    @property
    def adapter(self) -> Adapter | None:
        return stacked([adapter for _, adapter in self.rounds]) if self.rounds else None


def history(run: Path, stages: list[Path], part: str) -> History:
    """Follows the weights of `part` ("encoder" or "decoder") back to what no stage of the run trained as an adapter.

    Raises:
        ValueError: the adapter of a stage is missing or does not fit its YAML.
    """
    rounds: list[tuple[str, Adapter]] = []
    base = str(part_settings(last_config(run, stages), part)["path"])
    for stage in reversed(stages):
        folder = stage / "weights" / part
        if not folder.is_dir():
            continue
        learnt = learning(stage / "config.yaml", part)
        if learnt == "all":
            return History(str(folder), stage.name, rounds)
        if learnt is not None:
            rounds.insert(0, (stage.name, read_adapter(folder / FILES[part], LoRA(**learnt))))
        base = str(part_settings(stage / "config.yaml", part)["path"])
        if not any(Path(base).parts[-3:] == (earlier.name, "weights", part) for earlier in stages):
            break
    if not Path(base).expanduser().exists():  # on the hub, where no stage hands anything on
        return History(base, None, rounds)
    source = source_of(base, [])
    earlier = [(str(folder), read_adapter(folder / FILES[part], lora_of(folder))) for folder in source.adapters]
    return History(source.root, None, [*earlier, *rounds])


def part_settings(config: Path, part: str) -> dict[str, Any]:
    """`init_args` of a part in the YAML of a stage, interpolations resolved."""
    try:
        return read_autoencoder(config, {})["init_args"][part]["init_args"]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{config} does not say what the {part} is: model.autoencoder.{part}") from error


def learning(config: Path, part: str) -> dict[str, Any] | str | None:
    """What the YAML of a stage trains of a part: "all", the settings of a LoRA, or nothing."""
    return (read_stage_yaml(config)["model"]["init_args"].get("learn") or {}).get(part)


def read_adapter(file: Path, lora: LoRA) -> Adapter:
    """One round: its tensors, and the alpha that only the stage's YAML knows."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: its stage trained a LoRA; run that stage again, or restore the file")
    verify(file.parent, file.name)
    state = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    down = {name.removesuffix(DOWN): tensor for name, tensor in state.items() if name.endswith(DOWN)}
    up = {name.removesuffix(UP): tensor for name, tensor in state.items() if name.endswith(UP)}
    if down.keys() != up.keys() or any(tensor.shape[0] != lora.rank for tensor in down.values()):
        raise ValueError(
            f"{file} does not hold an adapter of rank {lora.rank}, which the config.yaml of its stage says"
        )
    return Adapter(down, up, lora.rank, lora.alpha)


def stacked(rounds: list[Adapter]) -> Adapter:
    """One adapter that adds what all of them add; a layer that a round left alone gets zeros from it."""
    one_scaling = len({adapter.scaling for adapter in rounds}) == 1
    rank = sum(adapter.rank for adapter in rounds)
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for name in sorted(set().union(*(adapter.down for adapter in rounds))):
        like = next(adapter for adapter in rounds if name in adapter.down)
        downs, ups = [], []
        for adapter in rounds:
            a = adapter.down.get(name, torch.zeros(adapter.rank, like.down[name].shape[1]))
            b = adapter.up.get(name, torch.zeros(like.up[name].shape[0], adapter.rank))
            downs.append(a)
            ups.append(b if one_scaling else b * adapter.scaling)
        down[name], up[name] = torch.cat(downs), torch.cat(ups, 1)
    return Adapter(down, up, rank, sum(adapter.alpha for adapter in rounds) if one_scaling else rank)


def cast(adapter: Adapter, dtype: torch.dtype | None) -> Adapter:
    parts = ({name: t.to(dtype or t.dtype) for name, t in part.items()} for part in (adapter.down, adapter.up))
    return Adapter(*parts, adapter.rank, adapter.alpha)


# ------------------------------------------------------------------------------------------------ writing


def save_peft(adapter: Adapter, base: str, folder: Path) -> None:
    """`PeftModel.from_pretrained(model, folder)` reads it."""
    folder.mkdir()
    config = adapter.config(base)
    config.task_type = "CAUSAL_LM"
    config.save_pretrained(folder)
    sort_targets(folder / "adapter_config.json")
    save_file(adapter.state("base_model.model."), folder / "adapter_model.safetensors", {"format": "pt"})


def sort_targets(file: Path) -> None:
    """peft writes them in the order of a set, another one in each process."""
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"target_modules": sorted(config["target_modules"])}, indent=2, sort_keys=True))


def save_comfyui(adapter: Adapter, file: Path) -> None:
    """The names under which ComfyUI finds the layers of SD3 and SD3.5.

    Its `comfy/lora.py` (`model_lora_keys_unet`) takes `transformer.` and a layer's name in diffusers for what
    `mmdit_to_diffusers` in `comfy/utils.py` maps into its own `joint_blocks`, where q, k and v are slices of one
    weight; `comfy/weight_adapter/lora.py` reads `.lora_A.weight` and `.lora_B.weight` and scales by `.alpha` / rank,
    without `.alpha` by 1.
    """
    alphas = {f"transformer.{name}.alpha": torch.tensor(float(adapter.alpha)) for name in adapter.down}
    save_file(adapter.state("transformer.") | alphas, file, {"format": "pt"})
