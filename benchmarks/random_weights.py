"""Random weights of the published architectures, written one tensor at a time, where `conf/real` looks for them.

The folder is laid out as the hub names models (Qwen/Qwen2.5-VL-3B-Instruct, ...): a command that is started inside it
takes these folders for the ids in its YAMLs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from diffusers import AutoencoderKL, ModelMixin, SD3Transformer2DModel
from PIL import Image
from torch import Tensor, nn

from uae_lightning.models.saving import save_transformers
from uae_lightning.models.tensor_files import write_shards
from uae_lightning.scenes.bootstrap.captioner import build_tokenizer

ARCHITECTURES = Path(str(resources.files("uae_lightning"))) / "models" / "architectures"
ENCODERS = {"qwen3b": "Qwen/Qwen2.5-VL-3B-Instruct", "qwen7b": "Qwen/Qwen2.5-VL-7B-Instruct"}
DECODERS = {
    "sd35_medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd35_large": "stabilityai/stable-diffusion-3.5-large",
}
JUDGES = {"openai/clip-vit-large-patch14": hf.CLIPModel, "facebook/dinov2-large": hf.Dinov2Model}
MODELS = ENCODERS | DECODERS
WORDS = "a large red ball stands left of two small blue cats in front of a grey wall under soft light".split()


def write_models(folder: Path, models: Iterable[str], layers: int | None, dtype: torch.dtype) -> None:
    """Those of MODELS that are named, and the judges; what lies there already stays.

    Args:
        layers: blocks of each model; None is the published number.
    """
    for name in models:
        write = write_encoder if name in ENCODERS else write_decoder
        once(folder / MODELS[name], lambda place, name=name, write=write: write(place, MODELS[name], layers, dtype))
    for name, kind in JUDGES.items():
        once(folder / name, lambda place, name=name, kind=kind: write_judge(place, name, kind, layers))


def once(place: Path, write) -> None:
    """Calls `write` with a folder that becomes `place` when all is written."""
    if place.exists():
        return
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"writing {place}", flush=True)
    write(partial)
    partial.rename(place)


def write_encoder(place: Path, name: str, layers: int | None, dtype: torch.dtype) -> None:
    """With the words of the scenes, as nobody's tokenizer is at hand; the vocabulary keeps its size."""
    config = hf.AutoConfig.from_pretrained(architecture(name))
    tokenizer = build_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    text, vision = config.text_config, config.vision_config
    for owner, key, word in [
        (config, "image_token_id", "<|image_pad|>"), (config, "video_token_id", "<|video_pad|>"),
        (config, "vision_start_token_id", "<|vision_start|>"), (config, "vision_end_token_id", "<|vision_end|>"),
        (text, "eos_token_id", "<|im_end|>"), (text, "pad_token_id", "<|endoftext|>"),
    ]:  # fmt: skip
        setattr(owner, key, token(word))
    text.bos_token_id = None
    if layers is not None:
        text.num_hidden_layers = vision.depth = layers
        text.layer_types = text.layer_types[:layers] if text.layer_types else None
        vision.fullatt_block_indexes = [layers - 1]
    with torch.device("meta"):
        model = hf.Qwen2_5_VLForConditionalGeneration(config).to(dtype)
    model.tie_weights()
    save_transformers(model, Drawn(model), place)
    tokenizer.save_pretrained(place)
    shutil.copy(architecture(name) / "preprocessor_config.json", place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [token("<|im_end|>")]}))


def write_decoder(place: Path, name: str, layers: int | None, dtype: torch.dtype) -> None:
    source = architecture(name)
    config: dict[str, Any] = json.loads((source / "transformer" / "config.json").read_text())
    if layers is not None:
        config["num_layers"] = layers
        config["dual_attention_layers"] = [one for one in config.get("dual_attention_layers", []) if one < layers]
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(config)
        codec = AutoencoderKL.from_config(json.loads((source / "vae" / "config.json").read_text()))
    write_diffusers(place / "transformer", nn.Module.to(transformer, dtype))
    write_diffusers(place / "vae", nn.Module.to(codec, dtype))
    shutil.copytree(source / "scheduler", place / "scheduler")


def write_diffusers(place: Path, model: ModelMixin) -> None:
    place.mkdir()
    model.save_config(place)
    drawn = Drawn(model)
    write_shards(place, "diffusion_pytorch_model", drawn.shapes, drawn.__getitem__)


def write_judge(place: Path, name: str, kind: type, layers: int | None) -> None:
    content = json.loads((architecture(name) / "config.json").read_text())
    for owner in (content, content.get("text_config", {}), content.get("vision_config", {})):
        if layers is not None and "num_hidden_layers" in owner:
            owner["num_hidden_layers"] = layers
    config = kind.config_class.from_dict(content)
    with torch.device("meta"):
        model = kind(config)
    model.config.architectures = [kind.__name__]
    model.config.save_pretrained(place)
    drawn = Drawn(model)
    write_shards(place, "model", drawn.shapes, drawn.__getitem__)
    shutil.copy(architecture(name) / "preprocessor_config.json", place)


def architecture(name: str) -> Path:
    return ARCHITECTURES / name.replace("/", "--")


class Drawn(dict):
    """The tensors of a model on the meta device, each drawn when it is asked for: matrices of deviation .02, vectors of
    ones (norms) and zeros (biases), and what is counted counted."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = model.state_dict()

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if not shape.is_floating_point():
            return torch.arange(shape.numel(), dtype=shape.dtype).reshape(shape.shape)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        if shape.dim() < 2:
            return torch.full(shape.shape, float("norm" in name and name.endswith("weight")), dtype=shape.dtype)
        return torch.empty(shape.shape, dtype=shape.dtype).normal_(std=0.02, generator=generator)


# ------------------------------------------------------------------------------------------------ pictures


def write_pictures(folder: Path, side: int) -> None:
    """What the YAMLs of conf/real call data/photos, data/captioned, and data/held_out: noise, with captions."""
    rng = np.random.default_rng(0)
    for name, count in (("photos", 4), ("captioned", 4), ("held_out", 2)):
        place = folder / "data" / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(place / f"{index}.png")
            (place / f"{index}.txt").write_text(" ".join(WORDS[index:]))
