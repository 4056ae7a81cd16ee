"""The same with the packages themselves, offline, where they are installed (`pip install wandb mlflow trackio`)."""

from __future__ import annotations

import sqlite3

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from standins import fit

from callbacks import SampleGallery
from callbacks.trackers import TrackioLogger
from uae_lightning.run.tracked import tell_settings


def test_wandb_writes_pictures_and_captions(tmp_path):
    # red without WandbLogger in GIVES
    wandb = pytest.importorskip("wandb")
    fit(tmp_path, SampleGallery(2), steps=2, logger=WandbLogger(project="uae", offline=True, save_dir=tmp_path))
    wandb.finish()
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    assert len([*media.glob("images/gallery/*.png")]) == 4 and len([*media.glob("table/gallery/captions*.json")]) == 2


def test_mlflow_writes_pictures_and_captions(tmp_path):
    # red without MLFlowLogger in GIVES, or with MLflow's folder of files in place of sqlite
    pytest.importorskip("mlflow")
    options = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "artifact_location": str(tmp_path / "artifacts")}
    logger = MLFlowLogger("uae", **options)
    fit(tmp_path, SampleGallery(2), steps=2, logger=logger)
    (run,) = (tmp_path / "artifacts").iterdir()
    assert len([*run.glob("artifacts/gallery/captions/step-*.md")]) == 2
    assert len([file for file in run.glob("artifacts/images/*.png")]) == 4


def test_mlflow_takes_the_settings_of_a_resumed_stage(tmp_path):
    # red with `logger.log_hyperparams(settings)`: changing param values is not allowed
    pytest.importorskip("mlflow")
    options = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "artifact_location": str(tmp_path / "artifacts")}
    logger = MLFlowLogger("uae", **options)
    for steps in (2, 4):
        tell_settings(logger, {"trainer.max_steps": steps, f"new.{steps}": 1})
        logger = MLFlowLogger("uae", run_id=logger.run_id, **options)
    params = logger.experiment.get_run(logger.run_id).data.params
    assert params == {"trainer.max_steps": "2", "new.2": "1", "new.4": "1"}


def test_trackio_writes_pictures_and_captions(tmp_path, monkeypatch):
    # red without TrackioLogger in GIVES
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path, raising=False)
    fit(tmp_path, SampleGallery(2), steps=2, logger=TrackioLogger("uae", "mine"))
    with sqlite3.connect(tmp_path / "uae.db") as database:
        rows = [
            bytes(metrics) for (metrics,) in database.execute("select metrics from metrics where run_name = 'mine'")
        ]
    assert sum(b"trackio.image" in row and b"caption of 0-0" in row for row in rows) == 2
