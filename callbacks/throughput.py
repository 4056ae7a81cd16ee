"""Throughput: how fast training goes, and on what the time is spent."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from uae_lightning.files import write_json
from uae_lightning.ranges import Count, checked
from uae_lightning.run import folder as run_folder
from uae_lightning.types import Batch


@dataclass(frozen=True)
class Step:
    seconds: float
    images: int
    verbs: dict[str, float]  # seconds by verb of an RL stage


@checked
class Throughput(L.Callback):
    """Logs, over the last `window` batches, from one batch's end to the next's (loading counts, validation does not):

    * `throughput/images_per_second` of all ranks together and `throughput/seconds_per_step`;
    * `throughput/images_seen` since the stage began, kept over a resume;
    * `time/VERB`, the share of the time in each verb of `pl_module.timings` (cumulative seconds), where it has that.

    Writes time.json at the end: seconds of the whole stage in `steps`, of these in each verb, and in `validation`. Not
    in on_train_end, which Lightning skips where a resumed run has no step left.

    Args:
        window: batches.
    """

    def __init__(self, window: Count = 20) -> None:
        self.steps: deque[Step] = deque(maxlen=window)
        self.images_seen = 0
        self.spent: Counter[str] = Counter()  # seconds
        self.clock = 0.0
        self.timings: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.timings = dict(getattr(pl_module, "timings", {}))
        self.clock = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now, self.timings = time.perf_counter(), dict(getattr(pl_module, "timings", {}))
        self.spent["validation"] += now - self.clock
        self.clock = now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now, timings = time.perf_counter(), dict(getattr(pl_module, "timings", {}))
        verbs = {verb: seconds - self.timings.get(verb, 0.0) for verb, seconds in timings.items()}
        images = len(batch.images) * trainer.world_size
        self.steps.append(Step(now - self.clock, images, verbs))
        self.spent.update({"steps": now - self.clock} | verbs)
        self.clock, self.timings, self.images_seen = now, timings, self.images_seen + images

        seconds = sum(step.seconds for step in self.steps)
        shares = {f"time/{verb}": sum(step.verbs.get(verb, 0.0) for step in self.steps) / seconds for verb in verbs}
        pl_module.log_dict(
            {
                "throughput/images_per_second": sum(step.images for step in self.steps) / seconds,
                "throughput/seconds_per_step": seconds / len(self.steps),
                "throughput/images_seen": float(self.images_seen),
                **shares,
            }
        )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            seconds = {name: round(value, 1) for name, value in self.spent.items()}
            write_json(Path(trainer.default_root_dir) / run_folder.TIME, seconds)

    def state_dict(self) -> dict[str, Any]:
        return {"images_seen": self.images_seen, "spent": dict(self.spent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images_seen = state_dict["images_seen"]
        self.spent = Counter(state_dict.get("spent", {}))  # older checkpoints have none
