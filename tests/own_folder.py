"""What a newcomer has: a folder of their own on PYTHONPATH, outside of the package, and YAMLs copied from conf/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from uae_lightning.cli import main

ROOT = Path(__file__).parents[1]
SMALL = {
    "model.autoencoder.sampling.steps": 2,
    "model.autoencoder.captioning.max_new_tokens": 8,
    "model.init_args.group_size": 2,
    "model.init_args.micro_batch": 4,
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
}


class Newcomer:
    """Counts the places that are touched: files that are new, and lines of YAML or of a table."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.touched = folder, []

    def write(self, name: str, text: str) -> None:
        (self.folder / "mine" / name).write_text(text)
        self.touched.append(name)

    def line(self, content: Any, key: str, value: Any) -> None:
        """Sets one key of a YAML, or of a table."""
        content[key] = value
        self.touched.append(key)

    def stage(self) -> dict[str, Any]:
        """conf/scenes/encoder_rl.yaml, with one cheap judge."""
        stage = yaml.safe_load((ROOT / "conf" / "scenes" / "encoder_rl.yaml").read_text())
        stage["model"]["init_args"]["autoencoder"]["include"] = str(ROOT / "conf" / "scenes" / "autoencoder.yaml")
        stage["data"]["init_args"] = {"batch_size": 2, "validation_pictures": 2, "validation_batch_size": 2}
        pixels = {"class_path": "uae_lightning.rewards.pixel_similarity.PixelSimilarity"}
        judged = {"class_path": "callbacks.RewardCallback", "init_args": {"reward": pixels, "unrewarded": pixels}}
        stage["trainer"]["callbacks"] = [judged, {"class_path": "callbacks.ComponentWeights"}]
        return stage

    def run(self, stage: dict[str, Any]) -> Path:
        """`uae run` of that stage for two steps; returns the stage's folder."""
        run = {"name": "mine", "stages": [{"name": "encoder_rl", "config": "stage.yaml", "options": SMALL}]}
        for name, content in (("run", run), ("stage", stage)):
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        assert main(["run", "--config", "run.yaml"]) == 0
        return self.folder / "runs" / "mine" / "encoder_rl"


@pytest.fixture
def newcomer(tmp_path, monkeypatch) -> Newcomer:
    (tmp_path / "mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    return Newcomer(tmp_path)


@pytest.fixture(scope="session")
def documented() -> dict[str, int]:
    """Places that the table of docs/architecture.md says a task touches."""
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Where a change begins")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| a"]
    return {name: int(places) for name, _, _, places in rows}
