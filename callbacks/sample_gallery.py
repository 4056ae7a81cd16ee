"""SampleGallery: the same held-out pictures, their captions and reconstructions, along the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor

from callbacks.captioned import captioned
from callbacks.trackers import Shown, show
from uae_lightning.files import replacing
from uae_lightning.ranges import Count, Several, checked
from uae_lightning.types import Batch, RewardInput, ValidationOutput


@checked
class SampleGallery(L.Callback):
    """At each validation, step 0 included, writes the first held-out pictures

    * to `<default_root_dir>/gallery/`: `originals.png` (none of prompts) and `step-000123.png` (one row of pictures
      each, as they are), `captions.json` {step: [captions]}; what is there of later steps, from before a resume, is
      removed;
    * to loggers that take pictures (`callbacks.trackers`: TensorBoard, W&B, MLflow, Trackio): originals above
      reconstructions, or drawings, both with the captions beside them, and the captions as text.

    Args:
        pictures: how many.
        keep: validations in the folder: of more, every second stays, then every fourth, ..., and the last.

    Raises:
        ValueError: `pictures` < 1 or `keep` < 2.
    """

    def __init__(self, pictures: Count = 8, keep: Several = 64) -> None:
        self.pictures, self.keep = pictures, keep
        self.shown: list[RewardInput] = []
        self.steps: list[int] = []  # of all validations

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.steps = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.shown = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: ValidationOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        room, inputs = self.pictures - sum(len(shown.captions) for shown in self.shown), outputs.inputs
        if room > 0 and trainer.is_global_zero:
            self.shown.append(replace(inputs, captions=outputs.drawn or inputs.captions)[:room])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        drawn = row_of([shown.reconstructions for shown in self.shown])
        originals = [shown.originals for shown in self.shown if shown.originals.numel()]
        above = [row_of(originals)] if originals else []
        captions = [caption for shown in self.shown for caption in shown.captions]
        name = "gallery/original_above_reconstruction" if originals else "gallery/drawings"
        pictures = {
            name: torch.cat([*above, drawn], 1),
            "gallery/captions_beside": captioned([*above, drawn], captions),
        }
        shown = Shown(
            pictures, captions, trainer.fit_loop.epoch_loop._batches_that_stepped
        )  # as Lightning's val/reward
        for logger in trainer.loggers:
            show(logger, shown)
        if trainer.state.fn == "fit":
            folder = Path(trainer.default_root_dir) / "gallery"
            folder.mkdir(parents=True, exist_ok=True)
            self.steps = [*(earlier for earlier in self.steps if earlier < step), step]
            kept = thinned(self.steps, self.keep)
            for row in above:
                write_png(row, folder / "originals.png")
            write_png(drawn, folder / f"step-{step:06d}.png")
            add_captions(folder / "captions.json", step, captions, kept)
            forget_others(folder, kept)


def row_of(batches: list[Tensor]) -> Tensor:
    """[n, 3, H, W] in [0, 1], several -> one row of pictures [3, H, N * W] uint8."""
    images = torch.cat(batches).float().clamp(0, 1)
    return (images * 255).round().byte().cpu().permute(1, 2, 0, 3).flatten(2)


def write_png(row: Tensor, path: Path) -> None:
    with replacing(path) as partial:
        Image.fromarray(row.permute(1, 2, 0).numpy()).save(partial, format="PNG")


def thinned(steps: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly, the first and the last included. Who is left out once stays out as they grow."""
    stride = 1
    while len(steps[::stride]) >= most:
        stride *= 2
    return sorted({*steps[::stride], steps[-1]})


def add_captions(path: Path, step: int, captions: list[str], kept: list[int]) -> None:
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {key: value for key, value in (known | {str(step): captions}).items() if int(key) in kept}
    with replacing(path) as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


def forget_others(folder: Path, kept: list[int]) -> None:
    for path in folder.glob("step-*.png"):
        if int(path.stem.removeprefix("step-")) not in kept:
            path.unlink()
