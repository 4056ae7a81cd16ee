"""Runs as `uae run` leaves them, without their training: parts with perturbed weights, saved stage by stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from uae_lightning.models.adapters import LoRA
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.run import folder as run_folder

KINDS = {"encoder": QwenVLEncoder, "projector": MLPProjector, "decoder": SD3Decoder}


def write_run(run: Path, start: dict[str, dict], stages: dict[str, dict[str, dict]], **common: Any) -> Path:
    """A run in which each stage trains some parts.

    Args:
        run: the folder to make.
        start: `init_args` of each part before the first stage.
        stages: name -> part -> what is laid over `init_args` in that stage; those parts it writes.
        common: further `init_args` of every stage.
    """
    torch.manual_seed(0)
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"name": run.name, "stages": list(stages), "written": "today"}))
    for name, trained in stages.items():
        parts = {part: options | trained.get(part, {}) for part, options in start.items()}
        weights = run_folder.latest_weights(run_folder.stages_of(run))
        parts = {
            part: options | ({"path": str(weights[part])} if part in weights else {}) for part, options in parts.items()
        }
        (run / name).mkdir()
        write_config(run / name / "config.yaml", parts, common)
        for part in trained:
            trained_part(part, parts[part]).save(run / name / "weights" / part)
    return run


def write_config(file: Path, parts: dict[str, dict], common: dict[str, Any]) -> None:
    described = {
        part: {"class_path": f"{KINDS[part].__module__}.{KINDS[part].__name__}", "init_args": options}
        for part, options in parts.items()
    }
    model = {
        "class_path": "uae_lightning.stages.decoder_pretrain.DecoderPretrain",
        "init_args": {"autoencoder": {
            "class_path": "uae_lightning.autoencoder.AutoEncoder", "init_args": described | common,
        }},
    }  # fmt: skip
    content = {
        "model": model,
        "data": {"class_path": "stand_ins.TinyData"},
        "trainer": {"accelerator": "cpu", "max_steps": 1},
    }
    file.write_text(yaml.safe_dump(content))


def trained_part(part: str, options: dict):
    """The part with other weights than it started from, where it has any to train."""
    options = options | ({"lora": LoRA(**options["lora"])} if "lora" in options else {})
    made = KINDS[part](**options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made
