"""Runs as `uae run` leaves them, without their training: parts with perturbed weights, saved stage by stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from uae_lightning.models.flux2 import Flux2Decoder
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_image import QwenImageDecoder
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sana import SanaDecoder
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.models.z_image import ZImageDecoder
from uae_lightning.run import folder as run_folder
from uae_lightning.types import LoRA

KINDS = {"encoder": QwenVLEncoder, "projector": MLPProjector, "decoder": SD3Decoder}
DECODERS = {
    "sana": SanaDecoder, "flux2": Flux2Decoder, "z_image": ZImageDecoder, "qwen_image": QwenImageDecoder
}  # fmt: skip


def write_run(
    run: Path, start: dict[str, dict], stages: dict[str, dict[str, dict]], kinds: dict = KINDS, **common: Any
) -> Path:
    """A run in which each stage trains some parts.

    Args:
        run: the folder to make.
        start: `init_args` of each part before the first stage.
        stages: name -> part -> "all" or the settings of a LoRA; those parts it writes.
        kinds: class of each part.
        common: further `init_args` of every stage.
    """
    torch.manual_seed(0)
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"name": run.name, "stages": list(stages), "written": "today"}))
    for name, learn in stages.items():
        weights = run_folder.latest_weights(run_folder.stages_of(run))
        parts = {
            part: options | ({"path": str(weights[part])} if part in weights else {}) for part, options in start.items()
        }
        (run / name).mkdir()
        write_config(run / name / "config.yaml", parts, learn, common, kinds)
        for part, how in learn.items():
            trained_part(kinds[part], parts[part], how).hand_on(run / name / "weights" / part)
    return run


def write_config(file: Path, parts: dict[str, dict], learn: dict[str, Any], common: dict, kinds: dict) -> None:
    described = {
        part: {"class_path": f"{kinds[part].__module__}.{kinds[part].__name__}", "init_args": options}
        for part, options in parts.items()
    }
    model = {
        "class_path": "uae_lightning.stages.decoder_pretrain.DecoderPretrain",
        "init_args": {"learn": learn, "autoencoder": {
            "class_path": "uae_lightning.autoencoder.AutoEncoder", "init_args": described | common,
        }},
    }  # fmt: skip
    content = {
        "model": model,
        "data": {"class_path": "stand_ins.TinyData"},
        "trainer": {"accelerator": "cpu", "max_steps": 1},
    }
    file.write_text(yaml.safe_dump(content))


def trained_part(kind: type, options: dict, how: str | dict):
    """The part with other weights than it started from."""
    made = kind(**options)
    made.adapt(how if how == "all" else LoRA(**how))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made
