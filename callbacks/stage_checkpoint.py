"""Checkpoints that lie after the validation of their step, so that a resumed run neither skips nor repeats it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.final_validation import is_over
from uae_lightning.parallel.collectives import RaisedTogether


class StageCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` by steps, and once more when an error ends the run.

    * `every_n_train_steps` counts optimiser steps, of which an RL stage takes `updates_per_batch` in a batch: the
      checkpoint is written at the first end of a batch at or after the step that was asked for. (`val_check_interval`
      of the trainer counts batches.)
    * The last step has one, whatever `every_n_train_steps` is: from it `--resume` writes the weights of a stage that
      ended before they were all on disk.
    * Lightning's saves at the end of a batch, before the validation that is due there; a run killed in between would
      resume without that validation, and a curve, or the final score, would lack a point.
    * An error loses no step: where no optimiser step was taken since, the checkpoint is that of the last whole batch,
      and a resumed run repeats the batch, or the validation, in which it happened. On several devices all must have
      raised it (`RaisedTogether`), or those that did not would be waited for.
    """

    before: int | None = None  # optimiser steps when the batch under way began; None before the first batch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        self.before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch:
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        every = self._every_n_train_steps
        if not every:  # by time or by epoch
            super().on_train_batch_end(trainer, pl_module, None, None, 0)
        elif self.before is not None and (trainer.global_step // every > self.before // every or is_over(trainer)):
            if not self._should_skip_saving_checkpoint(trainer):
                self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        metrics = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, metrics)
        self._save_last_checkpoint(trainer, metrics)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        together = trainer.world_size == 1 or isinstance(exception, RaisedTogether)
        anywhere = not isinstance(exception, Exception)  # Ctrl-C comes in the middle of an optimiser step as well
        if self.before is None or anywhere or not together or self._should_skip_saving_checkpoint(trainer):
            return
        if not (back_to_validation(trainer) if trainer.validating else back_to_last_batch(trainer, self.before)):
            return
        try:
            self._save(trainer)
        except Exception as error:  # the one under way is the reason, and is what is raised
            rank_zero_warn(f"the state after step {trainer.global_step} could not be saved: {error}")
        else:
            rank_zero_warn(f"the state after step {trainer.global_step} is saved: --resume goes on from there")


def back_to_last_batch(trainer: L.Trainer, steps: int) -> bool:
    """Sets the counters to where they are when Lightning saves at the end of a batch: the last one that is whole.

    False where weights or gradients are no longer those of that moment, when `steps` optimiser steps were taken.
    """
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress
    whole_batches = progress.total.ready == progress.total.completed or trainer.global_step == steps
    if not whole_batches or progress.current.processed % trainer.accumulate_grad_batches:
        return False
    for count in (progress.total, progress.current):
        count.ready = count.started = count.processed
        count.completed = count.processed - 1
    loop._batches_that_stepped -= 1
    return True


def back_to_validation(trainer: L.Trainer) -> bool:
    """Sets the counters of a validation under way to its start, to which Lightning then goes back.

    False after the last step, where it would not: the run repeats the steps since the last checkpoint.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for count, over in ((progress.total, progress.total.completed), (progress.current, 0)):
        count.processed = count.completed = over
        count.ready = count.started = over + 1
    return trainer.max_steps == -1 or trainer.global_step < trainer.max_steps
