"""ComponentWeights: how one stage hands its work to the next."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor, nn

from callbacks.ema import EMA
from callbacks.reward import RewardCallback
from uae_lightning.files import check_room, shared, write_json
from uae_lightning.interfaces import Component
from uae_lightning.parallel.collectives import barrier
from uae_lightning.parallel.sharding import whole_on_main
from uae_lightning.run import folder as run_folder


class ComponentWeights(L.Callback):
    """After the fit, what the stage trained of every part, to `<default_root_dir>/weights/NAME`.

    The constructor of each part starts from such a folder. They are written to `weights.partial` and renamed when they
    are complete, so `weights` never holds half of them.

    The hook is on_fit_end, not on_train_end: a run that was killed between its last checkpoint and here has no step
    left when it is resumed, and Lightning then skips on_train_end. EMA copies its average in at the same hook and must
    be listed before this callback. On several devices rank 0 writes them, whole, whatever the strategy.

    StageCheckpoint has written the last step by then: what cannot be saved here, for want of room or because the
    process is killed, is saved by `--resume`.

    RL turns bad after its best. With `hand_on: best` the weights are those of the validation with the highest held-out
    reward, of the average where there is EMA, the one before training included; a copy of what is trained stays in
    memory and in the checkpoints. `handed_on.json` says which step they are of, and the stage's figures are of it. The
    best of many validations is a little better on those pictures than on others: judge by `uae evaluate`.

    Args:
        hand_on: "last", or "best".
        merged: whole weights with the adapters merged (`Component.save`), in the format of the part's library, where
            adapters and the name of what they belong to would do.

    Raises:
        ValueError: EMA is listed after it, or there is no RewardCallback before it to say which weights are best; or
            the disk has no room, which is found before the first step where it can be, and before anything is written.
    """

    def __init__(self, hand_on: Literal["last", "best"] = "last", merged: bool = False) -> None:
        self.merged, self.hand_on = merged, hand_on
        self.best: dict[str, Any] = {"reward": -math.inf, "step": None}
        self.weights: dict[str, Tensor] = {}  # of that step

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        place = trainer.callbacks.index(self)
        if self.hand_on == "best" and not self._rewards(trainer.callbacks[:place]):
            raise ValueError(
                "hand_on: best of callbacks.ComponentWeights asks for the held-out reward: list "
                "callbacks.RewardCallback before it in trainer.callbacks"
            )
        later = trainer.callbacks[place:]
        if any(isinstance(callback, EMA) for callback in later):
            raise ValueError(
                "list callbacks.EMA before callbacks.ComponentWeights in trainer.callbacks: "
                "the weights handed on would be the raw ones instead of the average"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The least that a stage leaves: its weights, and a checkpoint of what is trained."""
        if trainer.is_global_zero:
            parts = [getattr(pl_module, name) for name in pl_module.hands_on]
            least = sum(map(self.size, parts)) + size_of(p for p in pl_module.parameters() if p.requires_grad)
            check_room(Path(trainer.default_root_dir), least, f"what the stage {trainer.default_root_dir} will write")

    @staticmethod
    def _rewards(callbacks: list[L.Callback]) -> list[RewardCallback]:
        return [callback for callback in callbacks if isinstance(callback, RewardCallback)]

    # ------------------------------------------------------------------------------------------------ the best

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The average is still in the module: the weights are those that were validated."""
        if self.hand_on == "last" or trainer.state.fn != "fit":
            return
        reward = self._rewards(trainer.callbacks)[0].held_out
        if reward > self.best["reward"]:
            self.best = {"reward": reward, "step": trainer.global_step}
            trained = ((name, p) for name, p in pl_module.named_parameters() if p.requires_grad)
            self.weights = {name: parameter.detach().clone() for name, parameter in trained}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self.weights} if self.hand_on == "best" else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.weights = state_dict["best"], state_dict["weights"]

    def _take_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        for name, best in self.weights.items():
            parameters[name].data.copy_(best)
        if trainer.is_global_zero and self.weights:
            write_json(Path(trainer.default_root_dir) / run_folder.HANDED_ON, self.best)

    # ------------------------------------------------------------------------------------------------ at the end

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.hand_on == "best":
            self._take_best(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / "weights"
        partial, previous = folder.with_name("weights.partial"), folder.with_name("weights.previous")
        if trainer.is_global_zero:
            for leftover in (partial, previous):
                shutil.rmtree(leftover, ignore_errors=True)
        for name in pl_module.hands_on:
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
