"""Weights in files of any generation of transformers, with a LoRA merged into them, tensor by tensor.

Nothing is held in memory that is not being merged or written.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uae_lightning.models.loading import load
from uae_lightning.types import LoRA

SHARD = "5GB"
RELEASED_LORA = LoRA(rank=32, alpha=64)  # demo.py; the files of llm_lora do not say


def plain_name(key: str) -> str:
    """The name a tensor has without what peft adds to it around layers and adapters."""
    return re.sub(r"\bbase_model\.(model\.)?", "", key).replace(".base_layer.", ".").replace(".default.", ".")


def qwen_name(key: str) -> str:
    """The name on the hub (`model.layers`, `visual`, `lm_head`) of what any transformers calls so.

    `layers` of the inner text model, `model.layers` up to 4.51, `model.language_model.layers` since then.
    """
    name = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", plain_name(key))
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^(layers|embed_tokens|norm)\.", r"model.\1.", name)


def read_state(folder: Path, name: Callable[[str], str]) -> dict[str, Tensor]:
    """All tensors of a folder, mapped from the files: they take memory when they are used, and give it back."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            if file.suffix == ".bin":
                tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            else:
                with safe_open(file, "pt") as opened:
                    tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no dict)
        except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is damaged or not downloaded to its end: download it again ({error})") from error
        state |= {name(key): tensor for key, tensor in tensors.items()}
    return state


class Part:
    """One model of the release: its architecture without weights, and its tensors where they lie in the files.

    Args:
        kind: class of the model.
        folder: its config and weights.
        adapter: folder of its LoRA, if that is to be merged.
        name: from the names in files, and those of `kind`, to one name for each tensor.
        dtype: to write the weights in; None is their own.
    """

    def __init__(
        self,
        kind: type[nn.Module],
        folder: Path,
        adapter: Path | None,
        name: Callable[[str], str],
        dtype: torch.dtype | None,
    ) -> None:
        self.folder, self.adapter, self.name, self.dtype = folder, adapter, name, dtype
        self.state = read_state(folder, name)
        with torch.device("meta"):  # with a dtype because that stands in the config.json of transformers
            self.model = load(kind, folder, dtype or next(iter(self.state.values())).dtype)
        self.layers: dict[str, str] = {}  # name of an adapted layer -> its path in the model
        if adapter is not None:
            self._adapt(adapter, read_state(adapter, name))

    def _adapt(self, adapter: Path, update: dict[str, Tensor]) -> None:
        """Layers of peft where the adapter has tensors, which therefore know its scaling."""
        adapted = {key.removesuffix(".lora_A.weight") for key in update if key.endswith(".lora_A.weight")}
        paths = {self.name(path): path for path, _ in self.model.named_modules()}
        if not adapted:
            raise ValueError(f"{adapter} holds no LoRA: download it again, or leave it out with --no-lora")
        if unknown := adapted - paths.keys():
            raise ValueError(f"{adapter} adapts layers that the model in {self.folder} lacks: {listed(unknown)}")
        self.layers = {name: paths[name] for name in sorted(adapted)}
        ranks = {update[f"{name}.lora_A.weight"].shape[0] for name in adapted}
        self.lora = lora_config(adapter, ranks, list(self.layers.values()))
        inject_adapter_in_model(self.lora, self.model, low_cpu_mem_usage=True)
        self.state |= update

    def check(self) -> None:
        """Raises ValueError where a tensor is missing, has not the model's shape, or belongs nowhere."""
        tied = {self.name(key) for key in getattr(self.model, "all_tied_weights_keys", {})}  # one tensor, two names
        if any(f"{layer}.weight" in tied for layer in self.layers):
            raise ValueError(f"{self.adapter} adapts a layer whose weight is also the embedding: it cannot be merged")
        self.state = {name: tensor for name, tensor in self.state.items() if name not in tied}
        wanted = {self.name(key): tensor.shape for key, tensor in self.model.state_dict().items()}
        wanted = {name: shape for name, shape in wanted.items() if name not in tied}
        where = " and ".join(str(folder) for folder in (self.folder, self.adapter) if folder)
        if missing := wanted.keys() - self.state.keys():
            raise ValueError(f"{where}: tensors are missing, download the weights again: {listed(missing)}")
        if unknown := self.state.keys() - wanted.keys():
            raise ValueError(f"{where}: tensors that have no place in {type(self.model).__name__}: {listed(unknown)}")
        for name, shape in wanted.items():
            if self.state[name].shape != shape:
                raise ValueError(
                    f"{where}: {name} is {list(self.state[name].shape)} and not {list(shape)}: "
                    "these weights and this config.json are not of one model"
                )

    def merged(self, name: str) -> Tensor:
        """One tensor of the model, with its LoRA update where it has one."""
        tensor = self.state[name]
        dtype = written_dtype(tensor, self.dtype)
        layer = name.removesuffix(".weight")
        if layer in self.layers:
            module = self.model.get_submodule(self.layers[layer])
            for matrix in ("lora_A", "lora_B"):
                weight = self.state[f"{layer}.{matrix}.weight"].float()
                getattr(module, matrix)["default"].weight = nn.Parameter(weight, requires_grad=False)
            tensor = tensor.float() + module.get_delta_weight("default")
            module.to("meta")
        return tensor.to(dtype).contiguous()

    def write(self, folder: Path, stem: str, report: Callable[[str], None]) -> None:
        """The weights in shards of at most 5 GB with their index, in the layout of transformers and diffusers."""
        sizes = {
            name: torch.empty(tensor.shape, dtype=written_dtype(tensor, self.dtype), device="meta")
            for name, tensor in self.state.items()
            if ".lora_" not in name
        }
        pattern = stem + "{suffix}.safetensors"
        split = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size=SHARD)
        for file, names in split.filename_to_tensors.items():
            save_file({name: self.merged(name) for name in names}, folder / file, metadata={"format": "pt"})
            report(f"written: {file} of {self.folder.name}")
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def write_adapter(self, folder: Path) -> None:
        """The LoRA as it was, in peft's layout: `PeftModel.from_pretrained` puts it on the model without it."""
        self.lora.save_pretrained(folder)
        tensors = {
            f"base_model.model.{path}.{matrix}.weight": self.state[f"{name}.{matrix}.weight"].contiguous()
            for name, path in self.layers.items()
            for matrix in ("lora_A", "lora_B")
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def lora_config(adapter: Path, ranks: set[int], layers: list[str]) -> LoraConfig:
    """How the adapter's tensors are scaled: by its adapter_config.json, or else as in the authors' code.

    Raises:
        ValueError: it is not a LoRA, or has another rank than theirs and no config.
    """
    scaling = {"r": RELEASED_LORA.rank, "lora_alpha": RELEASED_LORA.alpha}
    if (adapter / "adapter_config.json").exists():
        stored = PeftConfig.from_pretrained(str(adapter))
        if not isinstance(stored, LoraConfig):
            raise ValueError(f"{adapter} is an adapter of kind {stored.peft_type}: only LoRA can be imported")
        keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        scaling = {key: getattr(stored, key) for key in keys}
    elif ranks != {RELEASED_LORA.rank}:
        raise ValueError(
            f"{adapter} has LoRA of rank {listed(ranks)} and not {RELEASED_LORA.rank} as released, and its files do "
            "not say how it is scaled: put an adapter_config.json beside them, "
            '{"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}'
        )
    return LoraConfig(target_modules=layers, init_lora_weights=False, **scaling)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, or else its .bin files.

    Raises:
        FileNotFoundError: there are none, or a shard is missing.
    """
    index = next(folder.glob("*.safetensors.index.json"), None)
    found = {path.name for path in folder.glob("*.safetensors")}
    if index is not None:
        wanted = set(json.loads(index.read_text())["weight_map"].values())
    else:
        found = found or {path.name for path in folder.glob("*model*.bin")}  # not optimizer.bin, training_args.bin
        counts = [re.fullmatch(r"(.*-)\d{5}(-of-(\d{5})\..*)", name) for name in found]
        wanted = found | {f"{m[1]}{i + 1:05}{m[2]}" for m in counts if m for i in range(int(m[3]))}
    if not wanted:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors or *.bin): download them again")
    if missing := wanted - found:
        raise FileNotFoundError(f"{folder} lacks {listed(missing)}: download what is missing")
    return [folder / name for name in sorted(wanted)]


def written_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def listed(names: Iterable) -> str:
    """The first few of them."""
    names = sorted(map(str, names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
