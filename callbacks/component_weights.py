"""ComponentWeights: how one stage hands its work to the next."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L

from callbacks.ema import EMA


class ComponentWeights(L.Callback):
    """After the fit, `component.save` of every part the stage trained, to `<default_root_dir>/weights/NAME`.

    The constructor of each part starts from such a folder. They are written to `weights.partial` and renamed when they
    are complete, so `weights` never holds half of them.

    The hook is on_fit_end, not on_train_end: a run that was killed between its last checkpoint and here has no step
    left when it is resumed, and Lightning then skips on_train_end. EMA copies its average in at the same hook and must
    be listed before this callback.

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
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "weights"
        partial, previous = folder.with_name("weights.partial"), folder.with_name("weights.previous")
        for leftover in (partial, previous):
            shutil.rmtree(leftover, ignore_errors=True)
        for name in pl_module.trained:
            target = partial / name
            target.mkdir(parents=True)
            getattr(pl_module, name).save(target)
        if folder.exists():  # a folder that is not empty cannot be replaced in one step
            folder.rename(previous)
        partial.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
