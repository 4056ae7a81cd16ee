"""The judge of GenEval's tasks on the embedded default."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from uae_lightning.evaluation.object_detectors import Box, DetectedObject, ObjectDetector
from uae_lightning.paths import resolve
from uae_lightning.scenes.detector import NAMES, SceneDetector
from uae_lightning.scenes.scene import CELL_CENTERS, CLASSES, COLORS, SIZES


class SceneObjectDetector(ObjectDetector):
    """Objects of the embedded default's scenes, as SceneDetector reads them.

    A box is that of the glyph in its cell. The score is that of the presence times that of the class.

    Args:
        path: folder of a SceneDetector, "shipped:NAME" or an ordinary path.
    """

    names, colors, counting_threshold = CLASSES, tuple(COLORS), 0.0

    def __init__(self, path: str | Path = "shipped:scenes/detector") -> None:
        super().__init__()
        self.detector = SceneDetector.from_folder(resolve(path)).requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[DetectedObject]]:
        logits = self.detector(images.to(self.detector.background.weight))
        presence = logits["presence"].sigmoid()  # [N, 9]
        scores = presence * logits["class"].softmax(-1).amax(-1)
        facts = {kind: logits[kind].argmax(-1).tolist() for kind in ("class", "color", "size")}
        found: list[list[DetectedObject]] = [[] for _ in images]
        for row, cell in (presence > 0.5).nonzero().tolist():
            name, color, size = (NAMES[kind][facts[kind][row][cell]] for kind in ("class", "color", "size"))
            found[row].append(DetectedObject(name, cell_box(cell, size), scores[row, cell].item(), color))
        return [sorted(objects, key=lambda item: -item.score) for objects in found]


def cell_box(cell: int, size: str) -> Box:
    """Where an object of this size lies in this cell of a scene."""
    y, x, half = CELL_CENTERS[cell // 3], CELL_CENTERS[cell % 3], SIZES[size] / 2
    return (x - half, y - half, x + half, y + half)
