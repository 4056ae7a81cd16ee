"""What each kind of Lightning logger is given of a validation's pictures and captions, and Trackio as a logger."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor


@dataclass
class Shown:
    """What a gallery shows at a validation."""

    pictures: dict[str, Tensor]  # name -> [3, H, W] uint8
    captions: list[str]
    step: int  # under which Lightning logs val/reward

    def images(self) -> dict[str, Image.Image]:
        return {name: Image.fromarray(row.permute(1, 2, 0).numpy()) for name, row in self.pictures.items()}

    def listed(self) -> str:
        return "\n".join(f"1. {caption}" for caption in self.captions)


def show(logger: Logger, shown: Shown) -> None:
    """Hands it to a logger that takes pictures; others (CSV) get nothing."""
    for kind, give in GIVES.items():
        if isinstance(logger, kind):
            give(logger, shown)


def to_tensorboard(logger: TensorBoardLogger, shown: Shown) -> None:
    for name, row in shown.pictures.items():
        logger.experiment.add_image(name, row, shown.step)
    logger.experiment.add_text("gallery/captions", shown.listed(), shown.step)


def to_wandb(logger: WandbLogger, shown: Shown) -> None:
    """A table holds the captions: each step has its own, which a panel shows one after the other."""
    for name, image in shown.images().items():
        logger.log_image(name, [image], step=shown.step)
    logger.log_table("gallery/captions", ["caption"], [[caption] for caption in shown.captions], step=shown.step)


def to_mlflow(logger: MLFlowLogger, shown: Shown) -> None:
    """Images with a step make a series in the run's page; MLflow has none of texts, so each step is a file."""
    for name, image in shown.images().items():
        logger.experiment.log_image(logger.run_id, image, key=name, step=shown.step)
    logger.experiment.log_text(logger.run_id, shown.listed(), f"gallery/captions/step-{shown.step:06d}.md")


class TrackioLogger(Logger):
    """Trackio, which keeps runs in files of this machine and shows them by `trackio show`; Lightning has none.

    Args:
        project: which runs are compared in.
        name: of the run; one of that name that is there goes on. None takes a name that Trackio makes up.

    Raises:
        ModuleNotFoundError: at the first figure, if the package trackio is not installed.
    """

    def __init__(self, project: str = "uae", name: str | None = None) -> None:
        super().__init__()
        self.project, self.run_name, self.run = project, name, None
        self.settings: dict[str, Any] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self.run is None:
            import trackio  # optional; it brings Gradio along, which takes seconds to import

            settings = {"config": self.settings, "embed": False}
            self.run = trackio.init(project=self.project, name=self.run_name, resume="allow", **settings)
            self.run_name = self.run.name
        return self.run

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self.run_name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.settings |= vars(params) if isinstance(params, Namespace) else params

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.run is not None:
            self.run.finish()


def to_trackio(logger: TrackioLogger, shown: Shown) -> None:
    import trackio

    images = {name: trackio.Image(image) for name, image in shown.images().items()}
    logger.experiment.log(images | {"gallery/captions": trackio.Markdown(shown.listed())}, step=shown.step)


GIVES: dict[type[Logger], Callable[[Any, Shown], None]] = {
    TensorBoardLogger: to_tensorboard,
    WandbLogger: to_wandb,
    MLFlowLogger: to_mlflow,
    TrackioLogger: to_trackio,
}
