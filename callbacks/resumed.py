"""What a stage that was killed and resumed still knows: its seconds, and curves that show every step once."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog


class StageClock(L.Callback):
    """Seconds of a stage in all its processes; of a killed one, those up to its last checkpoint.

    Args:
        began: `time.monotonic()` at its start, which no change of the date moves.
    """

    def __init__(self, began: float) -> None:
        self.began, self.earlier = began, 0.0

    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier = state_dict["seconds"]


class CurvesOnce(L.Callback):
    """TensorBoard has all events of before a checkpoint when it is written, and forgets later ones at a resume.

    SummaryWriter's `purge_step` does that, too, but must be known when the logger is made, before a checkpoint is read.
    """

    def __init__(self) -> None:
        self.resumed = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in tensorboards(trainer):
            logger.experiment.flush()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.resumed = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.resumed:
            return
        self.resumed = False
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # under which Lightning logs this batch
        for logger in tensorboards(trainer):
            start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(start, step)


def tensorboards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """The loggers that write files in this process."""
    return [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)] if trainer.is_global_zero else []
