"""Checkpoints that lie after the validation of their step, so that a resumed run neither skips nor repeats it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class StageCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` by steps.

    Lightning's saves at the end of a batch, before the validation that is due there; a run killed in between would
    resume without that validation, and a curve, or the final score, would lack a point.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch:
            super().on_train_batch_end(trainer, pl_module, *rest)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            super().on_train_batch_end(trainer, pl_module, None, None, 0)
