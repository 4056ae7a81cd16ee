"""ComponentWeights: how one stage hands its work to the next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import lightning as L
from torch import nn

from callbacks.ema import EMA
from uae_lightning.files import check_room, shared
from uae_lightning.interfaces import Component
from uae_lightning.parallel.collectives import barrier
from uae_lightning.parallel.sharding import whole_on_main


class ComponentWeights(L.Callback):
    """After the fit, what the stage trained of every part, to `<default_root_dir>/weights/NAME`.

    The constructor of each part starts from such a folder. They are written to `weights.partial` and renamed when they
    are complete, so `weights` never holds half of them.

    The hook is on_fit_end, not on_train_end: a run that was killed between its last checkpoint and here has no step
    left when it is resumed, and Lightning then skips on_train_end. EMA copies its average in at the same hook and must
    be listed before this callback. On several devices rank 0 writes them, whole, whatever the strategy.

    StageCheckpoint has written the last step by then: what cannot be saved here, for want of room or because the
    process is killed, is saved by `--resume`.

    Args:
        merged: whole weights with the adapters merged (`Component.save`), in the format of the part's library, where
            adapters and the name of what they belong to would do.

    Raises:
        ValueError: EMA is listed after it; or the disk has no room, which is found before the first step where it can
            be, and before anything is written.
    """

    def __init__(self, merged: bool = False) -> None:
        self.merged = merged

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        later = trainer.callbacks[trainer.callbacks.index(self) :]
        if any(isinstance(callback, EMA) for callback in later):
            raise ValueError(
                "list callbacks.EMA before callbacks.ComponentWeights in trainer.callbacks: "
                "the weights handed on would be the raw ones instead of the average"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The least that a stage leaves: its weights, and a checkpoint of what is trained."""
        if trainer.is_global_zero:
            parts = [getattr(pl_module, name) for name in pl_module.trained]
            least = sum(map(self.size, parts)) + size_of(p for p in pl_module.parameters() if p.requires_grad)
            check_room(Path(trainer.default_root_dir), least, f"what the stage {trainer.default_root_dir} will write")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "weights"
        partial, previous = folder.with_name("weights.partial"), folder.with_name("weights.previous")
        if trainer.is_global_zero:
            for leftover in (partial, previous):
                shutil.rmtree(leftover, ignore_errors=True)
        for name in pl_module.trained:
            self.write(getattr(pl_module, name), partial / name, trainer.is_global_zero)
        if trainer.is_global_zero:
            for file in filter(Path.is_file, partial.rglob("*")):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                shared(file)
            if folder.exists():  # a folder that is not empty cannot be replaced in one step
                folder.rename(previous)
            partial.rename(folder)
            shutil.rmtree(previous, ignore_errors=True)
        barrier()  # no rank goes on to a stage that reads them before they are there

    def write(self, part: Component, folder: Path, main: bool) -> None:
        with whole_on_main(part, self.parameters(part)):  # every rank holds a share of it
            if main:
                folder.mkdir(parents=True)
                check_room(folder, self.size(part), f"the weights of the stage {folder.parents[1]}")
                part.save(folder) if self.merged else part.hand_on(folder)

    def parameters(self, part: Component) -> list[nn.Parameter]:
        return list(part.parameters()) if self.merged else part.handed_on()

    def size(self, part: Component) -> int:
        return size_of(self.parameters(part))


def size_of(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of whole parameters, also where a rank holds a share of them."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
