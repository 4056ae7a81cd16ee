"""PeakMemory: the most memory that a stage takes in each phase that `uae plan` names, measured while it runs."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from uae_lightning.files import write_json

FILE = "peak_memory.json"
PHASES = {"rollout": "pictures", "score": "reward", "update": "update"}  # verb of `Stage.timed` -> phase of the plan
PAGE = os.sysconf("SC_PAGE_SIZE")
SECONDS = 0.005  # between two looks; as much memory as a gigabyte takes a tenth of a second to be written to


def anonymous() -> int:
    """Bytes of the process's memory that no file stands behind: resident pages less those of files."""
    _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - of_files) * PAGE


IMPORTED = 0 if torch.cuda.is_available() else anonymous()  # Python and its libraries, before anything is loaded


class Highest:
    """The most memory since the last `reset`. Linux notes it of all pages alone: a thread looks at those of no file."""

    def __init__(self) -> None:
        self.bytes, self.on_card, self.ended = 0, torch.cuda.is_available(), threading.Event()
        if not self.on_card:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(SECONDS):
            self.bytes = max(self.bytes, anonymous())

    def reset(self) -> int:
        """Bytes, those of Python and its libraries left out."""
        if self.on_card:
            found = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return found
        now = anonymous()
        found, self.bytes = max(self.bytes, now), now
        return found - IMPORTED


def mapped_weights(module: nn.Module) -> int:
    """Bytes of parameters and buffers that lie in the pages of their file, as safetensors leaves them if it can."""
    files = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, last = line.split(maxsplit=5)
        if last.startswith("/"):
            files.append(tuple(int(end, 16) for end in addresses.split("-")))
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(size for place, size in storages.items() if any(start <= place < end for start, end in files))


class PeakMemory(L.Callback):
    """Writes `<default_root_dir>/peak_memory.json`: bytes by phase, those of Python and its libraries left out.

    On a GPU they are those that its allocator gave out. On a CPU they are the process's own memory, with all that a
    plan cannot see (workspaces of kernels, memory that is freed and kept), and weights that lie in the pages of their
    file; its other pages, which the system takes back when it needs them, are not counted. "loading" is all before the
    first validation, "saving" the weights that are handed on. List it last.
    """

    def __init__(self) -> None:
        self.peaks: Counter[str] = Counter()
        self.open: list[str] = []
        self.highest = Highest()

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
        self.peaks[name] = max(self.peaks[name], self.highest.reset())

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
        self.highest.ended.set()
        judges = [
            part for callback in trainer.callbacks for part in vars(callback).values() if isinstance(part, nn.Module)
        ]
        mapped = 0 if self.highest.on_card else mapped_weights(nn.ModuleList([pl_module, *judges]))
        write_json(Path(trainer.default_root_dir) / FILE, {name: peak + mapped for name, peak in self.peaks.items()})


def read(stage: Path) -> dict[str, int]:
    return json.loads((stage / FILE).read_text())
