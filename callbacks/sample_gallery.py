"""SampleGallery: the same held-out pictures, their captions and reconstructions, along the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from uae_lightning.checkpoint_io import replacing
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Batch, RewardInput, ValidationOutput


@checked
class SampleGallery(L.Callback):
    """At each validation, step 0 included, writes the first held-out pictures

    * to `<default_root_dir>/gallery/`: `originals.png` and `step-000123.png` (one row of pictures each, as they are),
      `captions.json` {step: [captions]}; what is there of later steps, from before a resume, is removed;
    * to TensorBoard, if it is a logger: originals above reconstructions, and the captions as text.

    Args:
        pictures: how many.
    """

    def __init__(self, pictures: Count = 8) -> None:
        self.pictures = pictures
        self.shown: list[RewardInput] = []

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
            self.shown.append(
                RewardInput(inputs.originals[:room], inputs.reconstructions[:room], inputs.captions[:room])
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        originals = row_of([shown.originals for shown in self.shown])
        reconstructions = row_of([shown.reconstructions for shown in self.shown])
        captions = [caption for shown in self.shown for caption in shown.captions]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                grid = torch.cat([originals, reconstructions], 1)
                logger.experiment.add_image("gallery/original_above_reconstruction", grid, step)
                logger.experiment.add_text("gallery/captions", "\n".join(f"1. {text}" for text in captions), step)
        if trainer.state.fn == "fit":
            folder = Path(trainer.default_root_dir) / "gallery"
            folder.mkdir(parents=True, exist_ok=True)
            forget_later_steps(folder, step)
            write_png(originals, folder / "originals.png")
            write_png(reconstructions, folder / f"step-{step:06d}.png")
            add_captions(folder / "captions.json", step, captions)


def row_of(batches: list[Tensor]) -> Tensor:
    """[n, 3, H, W] in [0, 1], several -> one row of pictures [3, H, N * W] uint8."""
    images = torch.cat(batches).float().clamp(0, 1)
    return (images * 255).round().byte().cpu().permute(1, 2, 0, 3).flatten(2)


def write_png(row: Tensor, path: Path) -> None:
    with replacing(path) as partial:
        Image.fromarray(row.permute(1, 2, 0).numpy()).save(partial, format="PNG")


def add_captions(path: Path, step: int, captions: list[str]) -> None:
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {key: value for key, value in known.items() if int(key) < step}
    with replacing(path) as partial:
        partial.write_text(json.dumps(kept | {str(step): captions}, indent=1, ensure_ascii=False), encoding="utf-8")


def forget_later_steps(folder: Path, step: int) -> None:
    for path in folder.glob("step-*.png"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
