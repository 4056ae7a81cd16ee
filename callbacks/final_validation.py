"""FinalValidation: the last figures of a stage are those of the weights it hands on."""

from __future__ import annotations

from typing import Any

import lightning as L


class FinalValidation(L.Callback):
    """Makes a validation due at the last batch, also where `val_check_interval` does not divide the steps.

    Lightning itself runs it, so that averaging, logs and checkpoints go the way of every other validation. It must come
    before StageCheckpoint, which asks whether one is due; Lightning puts that last.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if is_over(trainer):
            trainer.val_check_batch = trainer.fit_loop.total_batch_idx + 1


def is_over(trainer: L.Trainer) -> bool:
    """Whether the batch that ends was the last one."""
    steps_done = 0 < trainer.max_steps <= trainer.global_step
    return steps_done or (trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs)
