"""What the tests of caption-data share: pictures, a quick captioner, and a look at what a folder holds."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.prepare.caption_reading import Reading
from uae_lightning.prepare.caption_set import CaptionData
from uae_lightning.prepare.filters import Caption, CaptionFilter
from uae_lightning.prepare.near_duplicates import perceptual_hash
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene


def scene(index: int) -> Image.Image:
    return Image.fromarray(render(sample_scene("train", 0, index)))


def save_scenes(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene(index).save(folder / f"{index:03d}.png")
    return folder


def describe(pictures: list[Image.Image]) -> list[Caption]:
    """Two words that say which picture it was, in a time that no test notices."""
    return [Caption(f"picture {hashlib.md5(np.asarray(picture)).hexdigest()[:8]}", True) for picture in pictures]


def caption_data(source: Path | str, folder: Path, *, part: int = 1, parts: int = 1, **options) -> CaptionData:
    folder.mkdir(parents=True, exist_ok=True)
    captioner = options.pop("captioner", describe)
    defaults = {
        "caption_filter": CaptionFilter(1, 600, 0.2), "model": "m", "duplicate_bits": None, "batch_size": 4,
        "load_hash": lambda: perceptual_hash,
        "shard_size": 6, "max_pixels": IMAGE_SIZE**2, "max_skipped": 1.0, "seed": 0,
    }  # fmt: skip
    reading = Reading(open_source(str(source), Columns(caption="")), part, parts)
    return CaptionData(reading=reading, load_captioner=lambda: captioner, folder=folder, **defaults | options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, the lock aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a copy of this process and returns how that ended: 0, 1 for an error, or -9 for SIGKILL."""
    child = os.fork()
    if child == 0:
        code = 1
        torch.set_num_threads(1)  # a fork has no pool of threads: the first of transformers' loaders would race for it
        try:
            code = int(work() or 0)
        finally:
            sys.stdout.flush()  # `os._exit` does not
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
