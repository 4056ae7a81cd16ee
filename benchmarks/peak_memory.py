"""PeakMemory: the most memory that a stage takes in each phase that `uae plan` names, measured while it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch

from uae_lightning.files import write_json

FILE = "peak_memory.json"
PHASES = {"rollout": "pictures", "score": "reward", "update": "update"}  # verb of `Stage.timed` -> phase of the plan
STATUS = Path("/proc/self/status")


def status(name: str) -> int:
    """Bytes of VmRSS or VmHWM: what the process has in memory, and had at most since `reset`."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status("VmHWM")


IMPORTED = 0 if torch.cuda.is_available() else status("VmRSS")  # Python and its libraries, before anything is loaded


class PeakMemory(L.Callback):
    """Writes `<default_root_dir>/peak_memory.json`: bytes by phase, those of Python and its libraries left out.

    On a GPU they are those that its allocator gave out; on a CPU those that the process has in memory (the resident
    set), with all that a plan cannot see: workspaces of kernels, and memory that is freed and kept. "loading" is all
    before the first validation, "saving" the weights that are handed on. List it last.
    """

    def __init__(self) -> None:
        self.peaks: Counter[str] = Counter()
        self.open: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        self._note()
        self.open.append(name)

    def end(self) -> None:
        self._note()
        self.open.pop()

    def _note(self) -> None:
        name = self.open[-1] if self.open else "between"
        self.peaks[name] = max(self.peaks[name], highest() - IMPORTED)
        reset()

    # ------------------------------------------------------------------------------------------------ hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.timed = lambda verb: self.phase(PHASES.get(verb, verb))
        if pl_module.learns_from_reward:  # it writes captions in training
            pl_module.encoder.generate = self._inside("captions", pl_module.encoder.generate)
        self.open = ["loading"]

    def _inside(self, name: str, function: Callable) -> Callable:
        def inside(*args: Any, **options: Any) -> Any:
            if "validation" in self.open:
                return function(*args, **options)
            with self.phase(name):
                return function(*args, **options)

        return inside

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.begin("update" if pl_module.automatic_optimization else "pictures")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.end()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin("saving")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.open:
            self.end()
        write_json(Path(trainer.default_root_dir) / FILE, dict(self.peaks))


def read(stage: Path) -> dict[str, int]:
    return json.loads((stage / FILE).read_text())
