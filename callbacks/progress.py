"""StepProgressBar: optimiser steps out of max_steps, with the time left.

Lightning's bars count the batches of an epoch. An endless loader has none, so they show neither total nor time left;
resumed in the middle of an epoch they start at 0; and into a file they write a line at every batch.
"""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, TQDMProgressBar

SECONDS = 10.0  # between two lines where the output is not a terminal


class StepProgressBar(TQDMProgressBar):
    """One bar over `trainer.max_steps` (without a total where that is -1), on a terminal redrawn at every batch;
    elsewhere (a log file) a plain line at most every 10 seconds, and no bars of validations."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = sys.stdout.isatty()
        self.printed = -SECONDS

    def init_train_tqdm(self) -> Tqdm:
        if self.terminal:
            return super().init_train_tqdm()
        return Tqdm(desc=self.train_description, file=io.StringIO(), smoothing=0, bar_format=self.BAR_FORMAT)

    def init_validation_tqdm(self) -> Tqdm:
        return super().init_validation_tqdm() if self.terminal else Tqdm(disable=True)

    def init_sanity_tqdm(self) -> Tqdm:
        return super().init_sanity_tqdm() if self.terminal else Tqdm(disable=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.total = trainer.max_steps if trainer.max_steps > 0 else None
        bar.initial = bar.n = trainer.global_step  # resumed steps took no time in this run
        bar._time = time.monotonic  # tqdm's own is the wall clock, which may jump
        bar.start_t = bar.last_print_t = time.monotonic()
        bar.set_description(type(pl_module).__name__, refresh=False)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Nothing: the bar goes over the whole fit."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        bar.n = min(trainer.global_step, bar.total or trainer.global_step)  # several steps a batch may overshoot
        bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=self.terminal)
        finished = bar.n == bar.total
        if not self.terminal and self.is_enabled and (finished or time.monotonic() - self.printed >= SECONDS):
            self.printed = time.monotonic()
            print(bar, flush=True)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's version says nothing
        return metrics
