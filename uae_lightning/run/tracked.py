"""Loggers beside TensorBoard: a resumed stage goes on in the run that it has with a tracker (W&B, MLflow, Trackio)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, MLFlowLogger

from uae_lightning.files import replacing
from uae_lightning.run.folder import TRACKERS
from uae_lightning.usage import UsageError

RUN = {"WandbLogger": "version", "MLFlowLogger": "run_id", "TrackioLogger": "name"}  # the option that names it
PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "TrackioLogger": "trackio"}


def named(trainer: Namespace) -> list[Namespace]:
    """The loggers that a YAML names by class."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [logger for logger in loggers if isinstance(logger, Namespace) and "class_path" in logger]


def kind_of(logger: Namespace) -> str:
    return logger.class_path.rpartition(".")[2]


def check_packages(trainer: Namespace) -> None:
    """Raises UsageError where the package of a tracker is not installed."""
    for logger in named(trainer):
        package = PACKAGES.get(kind_of(logger))
        if package is not None and find_spec(package) is None:
            raise UsageError(
                f"trainer.logger: {kind_of(logger)} needs the package {package}: `pip install {package}`, or leave the "
                "logger out of the YAML"
            )


@contextmanager
def going_on(trainer: Namespace, stage: Path) -> Iterator[None]:
    """Inside it loggers that name no run of theirs name the one they had in the stage's folder.

    Settings are as they were outside of it: what config.yaml says does not depend on how often a stage was resumed.
    """
    file, given = stage / TRACKERS, []
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for logger in named(trainer):
        kind = kind_of(logger)
        if kind in kept and logger.init_args.get(RUN[kind]) is None:
            given.append((logger.init_args, RUN[kind]))
            logger.init_args[RUN[kind]] = kept[kind]
    try:
        yield
    finally:
        for options, name in given:
            options[name] = None


def tell_settings(logger: Logger, settings: dict[str, Any]) -> None:
    """MLflow refuses another value for what its run has already: a resumed stage tells it what is new alone."""
    if isinstance(logger, MLFlowLogger) and logger.run_id is not None:
        known = logger.experiment.get_run(logger.run_id).data.params
        settings = {name: value for name, value in settings.items() if name not in known}
    logger.log_hyperparams(settings)


def keep_runs(loggers: Iterable[Logger], stage: Path) -> None:
    """Writes into the stage's folder which runs of trackers are its; with that they begin."""
    trackers = [logger for logger in loggers if type(logger).__name__ in RUN]
    kept = {type(logger).__name__: logger.version for logger in trackers if logger.experiment is not None}
    if kept:
        with replacing(stage / TRACKERS) as partial:
            partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
