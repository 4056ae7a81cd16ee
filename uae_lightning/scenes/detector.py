"""SceneDetector: reads the facts of a scene from its picture; the judge of reports, never a reward in training.

Symbols: N pictures, 9 cells of the 3 x 3 grid in raster order. The cells of `scenes.scene` are 32 px wide; five strides
of 2 turn a picture into a 3 x 3 map with one vector a cell.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uae_lightning.models.loading import read_object
from uae_lightning.models.weight_files import seal, verify
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, IMAGE_SIZE, SIZES, Scene

NAMES = {"class": CLASSES, "color": tuple(COLORS), "size": tuple(SIZES), "background": tuple(BACKGROUNDS)}
OF_A_CELL = ("class", "color", "size")


class SceneDetector(nn.Module):
    """Pictures [N, 3, 96, 96] in [0, 1] -> logits of every fact."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.trunk = nn.Sequential(
            _layer(3, width, stride=2),
            _layer(width, 2 * width, stride=2),
            _layer(2 * width, 2 * width),
            _layer(2 * width, 4 * width, stride=2),
            _layer(4 * width, 4 * width),
            _layer(4 * width, 8 * width, stride=2),
            _layer(8 * width, 8 * width, stride=2),
        )
        self.presence = nn.Linear(8 * width, 1)
        self.cells = nn.ModuleDict({kind: nn.Linear(8 * width, len(NAMES[kind])) for kind in OF_A_CELL})
        self.background = nn.Linear(8 * width, len(NAMES["background"]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """presence [N, 9], class [N, 9, 24], color [N, 9, 8], size [N, 9, 2], background [N, 10]."""
        if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"the scene detector reads pictures [N, 3, 96, 96], got {list(images.shape)}")
        tiles = self.trunk(images * 2 - 1).flatten(2).transpose(1, 2)  # [N, 9, D]
        logits = {kind: head(tiles) for kind, head in self.cells.items()}
        return {
            "presence": self.presence(tiles).squeeze(-1),
            **logits,
            "background": self.background(tiles.mean(1)),
        }

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """The facts themselves: presence [N, 9] bool; class, color, size [N, 9] and background [N] as indices."""
        logits = self(images)
        return {kind: value > 0 if kind == "presence" else value.argmax(-1) for kind, value in logits.items()}

    def save(self, folder: Path) -> None:
        """Weights in bf16 and config.json. The file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        # BatchNorm's counters of batches are integers: of no use once trained, and they would not survive the cast.
        state = {name: value for name, value in self.state_dict().items() if value.is_floating_point()}
        weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in state.items()}
        save_file(weights, folder / "model.safetensors.tmp")
        os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
        seal(folder)
        names = {kind: list(values) for kind, values in NAMES.items()}
        (folder / "config.json").write_text(json.dumps({"width": self.width, "names": names}, indent=1) + "\n")

    @classmethod
    def from_folder(cls, folder: Path) -> SceneDetector:
        """The detector saved in `folder`, in fp32 and eval mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: its weights are damaged, or it was trained on other classes, colours, sizes or backgrounds than
                those of `scenes.scene`.
        """
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no scene detector in {folder}: {name} is missing; `uae bootstrap` makes it")
        verify(folder)
        config = read_object(folder / "config.json")
        if config.get("names") != {kind: list(values) for kind, values in NAMES.items()}:
            raise ValueError(f"the detector in {folder} knows other scenes than data/scenes.py: run `uae bootstrap`")
        detector = cls(config["width"])
        weights = load_file(folder / "model.safetensors")
        detector.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
        missing = {k for k in detector.state_dict() if not k.endswith("num_batches_tracked")} - weights.keys()
        if missing:
            raise ValueError(f"{folder}/model.safetensors lacks {sorted(missing)[:3]}: run `uae bootstrap` again")
        return detector.eval()


def scene_targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """What `SceneDetector.read` should answer: presence [N, 9] bool, background [N], the others [N, 9] with -1 at
    empty cells."""
    targets = {kind: torch.full((len(scenes), 9), -1) for kind in OF_A_CELL}
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            for kind, value in zip(OF_A_CELL, (item.name, item.color, item.size), strict=True):
                targets[kind][row, item.cell] = NAMES[kind].index(value)
    background = torch.tensor([NAMES["background"].index(scene.background) for scene in scenes])
    return {"presence": targets["class"] >= 0, **targets, "background": background}


def _layer(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True))
