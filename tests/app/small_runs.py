"""A run as `uae run` leaves it, of small models of the real classes: two stages with rewards, pictures and curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SCENES_PROMPTS
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from callbacks.sample_gallery import add_captions, row_of, write_png
from uae_lightning.app.models import Models
from uae_lightning.app.run_folders import RunFolders
from uae_lightning.app.tabs import Tabs
from uae_lightning.data.images import as_tensor
from uae_lightning.models.projector import MLPProjector
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene

STAGES = ("first", "second")
KEYS = [f"scene-{number}" for number in range(4)]


def write_runs(folder: Path, parts: Path) -> Path:
    """One run, `small`, in the folder; what its stages trained is the projector."""
    run = folder / "small"
    run.mkdir()
    record = {"name": "small", "stages": list(STAGES), "written": "today", "command": "uae run", "versions": {}}
    (run / "run.json").write_text(json.dumps(record))
    for number, name in enumerate(STAGES):
        write_stage(run / name, number, parts)
    return folder


def write_stage(stage: Path, number: int, parts: Path) -> None:
    (stage / "weights" / "projector").parent.mkdir(parents=True)
    (stage / "config.yaml").write_text(yaml.safe_dump(config_of(parts)))
    projector = MLPProjector(str(parts / "projector"))
    with torch.no_grad():
        for parameter in projector.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
            parameter.add_(0.3 * (number + 1) * noise)
    projector.save(stage / "weights" / "projector")
    validate(stage, 0, 0.5 + 0.1 * number)
    validate(stage, 4, 0.6 + 0.1 * number)
    write_gallery(stage)
    with SummaryWriter(str(stage)) as events:
        for step in range(4):
            events.add_scalar("train/loss", 1.0 / (step + 1), step)
    (stage / "stage.json").write_text(json.dumps({"name": stage.name, "step": 4, "seconds": 3.0, "command": "uae fit"}))


def config_of(parts: Path) -> dict:
    described = {
        "encoder": ("qwen_vl.QwenVLEncoder", {"path": str(parts / "encoder"), **SCENES_PROMPTS}),
        "projector": ("projector.MLPProjector", {"path": str(parts / "projector")}),
        "decoder": ("sd3.SD3Decoder", {"path": str(parts / "decoder"), "resolution": IMAGE_SIZE}),
    }
    model = {
        name: {"class_path": f"uae_lightning.models.{path}", "init_args": options}
        for name, (path, options) in described.items()
    }
    model |= {"captioning": {"max_new_tokens": 12}, "sampling": {"steps": 3, "guidance": 1.5}}
    reward = {"class_path": "uae_lightning.rewards.pixel_similarity.PixelSimilarity"}
    callbacks = [{"class_path": "callbacks.RewardCallback", "init_args": {"reward": reward}}]
    return {"model": {"init_args": {"autoencoder": model}}, "trainer": {"callbacks": callbacks}}


def validate(stage: Path, step: int, reward: float) -> None:
    row = {
        "step": step, "keys": KEYS, "reward_name": "PixelSimilarity", "reward": [reward + 0.01 * n for n in range(4)],
        "caption_tokens": [5.0] * 4,
    }  # fmt: skip
    with (stage / "validation.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def write_gallery(stage: Path) -> None:
    folder = stage / "gallery"
    folder.mkdir()
    row = row_of([torch.stack([as_tensor(scene(number), IMAGE_SIZE) for number in range(2)])])
    for name, step in (("originals.png", None), ("step-000000.png", 0), ("step-000004.png", 4)):
        write_png(row, folder / name)
        if step is not None:
            add_captions(folder / "captions.json", step, ["a <b>cat</b>", "a dog"], [0, 4])


def scene(number: int) -> Image.Image:
    return Image.fromarray(render(sample_scene("test", 0, number)))


def tabs_of(runs: Path) -> Tabs:
    """What the page shows of these runs, and of weights that no run has trained."""
    start = runs / "start.yaml"
    shutil.copy(runs / "small" / "first" / "config.yaml", start)
    return Tabs(Models(RunFolders([runs]), start), scene)


@pytest.fixture(scope="module")
def runs(parts_folder, tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("secret_place"), parts_folder)


@pytest.fixture(scope="module")
def tabs(runs):
    return tabs_of(runs)
