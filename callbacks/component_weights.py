"""ComponentWeights: how one stage hands its work to the next."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L

from callbacks.ema import EMA
from uae_lightning.files import shared
from uae_lightning.parallel.collectives import barrier
from uae_lightning.parallel.sharding import whole_on_main


class ComponentWeights(L.Callback):
    """After the fit, `component.save` of every part the stage trained, to `<default_root_dir>/weights/NAME`.

    The constructor of each part starts from such a folder. They are written to `weights.partial` and renamed when they
    are complete, so `weights` never holds half of them.

    The hook is on_fit_end, not on_train_end: a run that was killed between its last checkpoint and here has no step
    left when it is resumed, and Lightning then skips on_train_end. EMA copies its average in at the same hook and must
    be listed before this callback. On several devices rank 0 writes them, whole, whatever the strategy.

    Raises:
        ValueError: EMA is listed after it.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        later = trainer.callbacks[trainer.callbacks.index(self) :]
        if any(isinstance(callback, EMA) for callback in later):
            raise ValueError(
                "list callbacks.EMA before callbacks.ComponentWeights in trainer.callbacks: "
                "the weights handed on would be the raw ones instead of the average"
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "weights"
        partial, previous = folder.with_name("weights.partial"), folder.with_name("weights.previous")
        if trainer.is_global_zero:
            for leftover in (partial, previous):
                shutil.rmtree(leftover, ignore_errors=True)
        for name in pl_module.trained:
            part = getattr(pl_module, name)
            with whole_on_main(part):  # every rank holds a share of it
                if trainer.is_global_zero:
                    (partial / name).mkdir(parents=True)
                    part.save(partial / name)
        if trainer.is_global_zero:
            for file in filter(Path.is_file, partial.rglob("*")):
                shared(file)
            if folder.exists():  # a folder that is not empty cannot be replaced in one step
                folder.rename(previous)
            partial.rename(folder)
            shutil.rmtree(previous, ignore_errors=True)
        barrier()  # no rank goes on to a stage that reads them before they are there
