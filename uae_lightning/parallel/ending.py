"""A run on several devices ends on all of them, with the reason, when it fails on one.

Without this a rank that fails leaves the others waiting for it: until the time limit of the process group (half an
hour) where they communicate by NCCL; with "connection closed by peer" by gloo, and no word of the reason.
The reason goes through the key-value store by which the ranks have found each other, which needs nobody's cooperation.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from typing import Any

import lightning as L
import torch.distributed as dist

from uae_lightning.parallel.collectives import RaisedTogether, barrier
from uae_lightning.parallel.stopping import Stopped

KEY = "uae/failure"
POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0  # rank 0 is the store: it stays until the others have read why
WAITED_IN_VAIN = "Timed out waiting|[Cc]ollective operation timeout|wait timeout after"  # of gloo, NCCL and the store
NO_ANSWER = (
    "another rank has not answered in time: look at what the others printed last, or where they are only slow give "
    "more time by trainer.strategy.init_args.timeout (of a strategy named by class_path); --resume goes on"
)


class EndTogether(L.Callback):
    """Tells the other ranks why this one fails, and ends this one when another says so."""

    def __init__(self) -> None:
        self.store: dist.Store | None = None
        self.over = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning's own answer to SIGTERM (2.6.6) is a broadcast from within the handler, which meets whatever
        # collective is under way, then a normal end after the step; `stopping` needs the passing on alone
        launcher = trainer.strategy.launcher
        trainer._signal_connector._sigterm_notifier_fn = lambda number, _: launcher and launcher.kill(number)
        if trainer.world_size == 1 or self.store is not None:
            return
        self.store = dist.distributed_c10d._get_default_store().clone()  # a connection of its own: others may block
        threading.Thread(target=self._watch, args=(self.store.clone(),), daemon=True, name="end-together").start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.store is None:
            return
        self.over.set()
        if isinstance(exception, RaisedTogether):  # nobody waits, and a checkpoint is still to be written
            return
        waited = isinstance(exception, RuntimeError) and bool(re.search(WAITED_IN_VAIN, str(exception)))
        reason = f"rank {trainer.global_rank} failed: {NO_ANSWER if waited else exception or type(exception).__name__}"
        told = self.store.compare_set(KEY, "", reason).decode()
        if told != reason and not isinstance(exception, Stopped):  # this one fails because another did
            end(told)
        if trainer.is_global_zero:
            time.sleep(GRACE_SECONDS)
        if waited:
            end(reason)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_data(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_data(trainer, trainer.num_training_batches)  # Lightning skips a rank that has none

    def _check_data(self, trainer: L.Trainer, batches: float) -> None:
        if self.store is not None and batches == 0:
            raise ValueError(
                f"there is no training data for rank {trainer.global_rank} of {trainer.world_size}: give the data "
                "module at least one batch for each device, or lower trainer.devices"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.store is not None:
            barrier()  # else rank 0 could be gone, and with it the store, while others still watch
        self.over.set()

    def _watch(self, store: dist.Store) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                failed = store.check([KEY])
            except RuntimeError:
                failed = None
            if self.over.is_set():
                return
            if failed is None:
                end("rank 0 ended without a word")
            if failed:
                end(store.get(KEY).decode())


def end(reason: str) -> Any:
    print(f"uae: error: {reason}; this rank ends with it", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)  # the main thread may hang in a collective that will never be complete
