"""What trackers are given, and that a resumed stage goes on in their run.

W&B and MLflow are no packages of this project: stand-ins of Lightning's loggers record the calls that each documents.
Trackio's module is a stand-in itself. test_installed_trackers.py has the packages, where they are installed.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from PIL import Image
from stand_ins import write_confs
from standins import fit

from callbacks import SampleGallery
from callbacks.trackers import TrackioLogger
from uae_lightning.cli import main
from uae_lightning.run.folder import TRACKERS

CAPTIONS = ["caption of 0-0", "caption of 0-1"]
NAMES = ["gallery/original_above_reconstruction", "gallery/captions_beside"]


class Calls(list):
    """Records (method, arguments, options) of whatever is called."""

    def __getattr__(self, name: str):
        return lambda *args, **options: self.append((name, args, options))


class OfWandb(WandbLogger):
    """Its interface: log_image(key, images, step), log_table(key, columns, data, step)."""

    def __init__(self) -> None:
        self.calls, self._log_model = Calls(), False
        self.log_image, self.log_table = self.calls.log_image, self.calls.log_table
        self.log_metrics = self.log_hyperparams = self.finalize = lambda *args, **options: None

    name, version, save_dir = "wandb", "id", None

    @property
    def experiment(self):  # the Trainer asks for it before the first step
        return self.calls


class OfMLflow(MLFlowLogger):
    """Of its client: log_image(run_id, image, key, step), log_text(run_id, text, artifact_file)."""

    def __init__(self) -> None:
        self.calls, self._log_model = Calls(), False
        self.log_metrics = self.log_hyperparams = self.finalize = lambda *args, **options: None

    name, version, save_dir, run_id = "mlflow", "id", None, "abc"

    @property
    def experiment(self):
        return self.calls


def test_wandb_gets_pictures_and_a_table_of_captions(tmp_path):
    # red without WandbLogger in GIVES, or with pictures as tensors of 0 to 255, which W&B takes for 0 to 1
    logger = OfWandb()
    fit(tmp_path, SampleGallery(2), steps=2, logger=logger)
    assert [(name, args[0]) for name, args, _ in logger.calls[:3]] == [
        ("log_image", NAMES[0]), ("log_image", NAMES[1]), ("log_table", "gallery/captions")
    ]  # fmt: skip
    ((image,),) = [args[1] for _, args, _ in logger.calls[:1]]
    assert isinstance(image, Image.Image) and image.size == (16, 16)
    assert logger.calls[2][1][1:] == (["caption"], [[caption] for caption in CAPTIONS])
    assert [options["step"] for _, _, options in logger.calls] == [0] * 3 + [1] * 3


def test_mlflow_gets_series_of_pictures_and_captions_as_files(tmp_path):
    # red without the run's id, or if captions of all steps go to one file
    logger = OfMLflow()
    fit(tmp_path, SampleGallery(2), steps=2, logger=logger)
    assert all(args[0] == "abc" for _, args, _ in logger.calls)
    pictures = [(options["key"], options["step"]) for name, _, options in logger.calls if name == "log_image"]
    assert pictures == [(name, step) for step in (0, 1) for name in NAMES]
    texts = [args[1:] for name, args, _ in logger.calls if name == "log_text"]
    said = "\n".join(f"1. {caption}" for caption in CAPTIONS)
    assert texts == [(said, f"gallery/captions/step-{step:06d}.md") for step in (0, 1)]


def test_a_logger_without_pictures_gets_none(tmp_path):
    # red if `show` takes every logger for TensorBoard's
    fit(tmp_path, SampleGallery(2), steps=2, logger=CSVLogger(tmp_path, name="csv", version=0))
    assert (tmp_path / "gallery" / "captions.json").is_file()


class Run(SimpleNamespace):
    """Of Trackio: `log(metrics, step)` and `finish()`."""

    def log(self, metrics: dict, step: int | None = None) -> None:
        self.logged.append((metrics, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def trackio(monkeypatch):
    """In place of the package, whatever is installed; `begun` are the runs that were asked for."""
    module = ModuleType("trackio")
    module.begun = []

    def init(project: str, name: str | None = None, config: dict | None = None, resume: str = "never", embed=True):
        run = Run(project=project, name=name or f"made-up-{len(module.begun)}", config=config, resume=resume, logged=[])
        module.begun.append(run)
        return run

    module.init, module.Image, module.Markdown = init, lambda image: ("image", image.size), lambda text: ("text", text)
    module.__spec__ = SimpleNamespace(name="trackio")
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_trackio_gets_all_of_it(tmp_path, trackio):
    # red if `to_trackio` logs under Trackio's own count of steps
    logger = TrackioLogger("uae", "mine")
    fit(tmp_path, SampleGallery(2), steps=2, logger=logger)
    logger.log_metrics({"val/reward": 0.5}, step=3)
    (run,) = trackio.begun
    shown = [(metrics, step) for metrics, step in run.logged if "gallery/captions" in metrics]
    assert [step for _, step in shown] == [0, 1] and run.finished and run.resume == "allow"
    said = "\n".join(f"1. {caption}" for caption in CAPTIONS)
    assert shown[0][0] == {
        NAMES[0]: ("image", (16, 16)),
        NAMES[1]: shown[0][0][NAMES[1]],
        "gallery/captions": ("text", said),
    }
    assert run.logged[-1] == ({"val/reward": 0.5}, 3)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Arguments of `uae` that train a small stage with Trackio."""
    write_confs(tmp_path)
    monkeypatch.chdir(tmp_path)
    logger = {"class_path": "callbacks.trackers.TrackioLogger", "init_args": {"project": "uae"}}
    (tmp_path / "tracked.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    return ["fit", "--config=conf/stage.yaml", "--config=tracked.yaml", "--trainer.default_root_dir=one"]


def test_a_resumed_stage_goes_on_in_its_run(stage, tmp_path, trackio, capsys):
    # red if the name is not kept, if --overwrite keeps it, or if what is kept counts as another setting
    assert main([*stage, "--trainer.max_steps=2"]) == 0
    assert json.loads((tmp_path / "one" / TRACKERS).read_text()) == {"TrackioLogger": "made-up-0"}
    assert list((tmp_path / "one").glob("events.out.*"))  # the report and the app read them
    assert trackio.begun[0].config["trainer.max_steps"] == 2
    for _ in range(2):  # twice: what the first resume writes is what the second is compared with
        (tmp_path / "one" / "stage.json").unlink(missing_ok=True)
        assert main([*stage, "--trainer.max_steps=4", "--resume"]) == 0
        assert trackio.begun[-1].name == "made-up-0"
    assert "logger" not in capsys.readouterr().out
    assert "made-up" not in (tmp_path / "one" / "config.yaml").read_text()
    assert main([*stage, "--trainer.max_steps=2", "--overwrite"]) == 0
    assert trackio.begun[-1].name == "made-up-3"


def test_a_missing_package_is_said_before_anything_is_loaded(stage, capsys):
    # red without check_packages: a traceback of ModuleNotFoundError, at the first figure
    assert main([*stage, "--trainer.logger.class_path=lightning.pytorch.loggers.WandbLogger"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
