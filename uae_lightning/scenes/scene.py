"""Scenes: the embedded data set, endless 96 x 96 pictures with an exact scene graph.

A scene is a background and one to four objects on a 3 x 3 grid. It is a pure function of (split, seed, index): nothing
is stored, any process can render any scene, and a hash of the graph assigns each scene to exactly one split.

The cells of the grid are 32 px wide, two of the 16 px patches of the latent codec, so that an object looks the same to
the codec in every cell; small backbones then learn its shape once instead of nine times (ours, measured in
docs/lab-notes.md). A picture is ten backgrounds and some hundred sprites of one cell each, put together by indexing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SIZE = 96
CELL = 32  # px
CELL_CENTERS = (16, 48, 80)
SIZES = {"large": 28, "small": 18}  # px

# Which pictures of a class (scenes/glyphs/glyphs.json) are its large and its small look: chosen for outlines that stay
# distinct at 18 px. The look follows from the size, so that a complete caption leaves nothing of the picture open.
GLYPHS = {
    "airplane": (0, 0), "apple": (0, 0), "banana": (0, 0), "bicycle": (0, 0), "bird": (2, 3), "boat": (1, 0),
    "book": (3, 1), "bus": (0, 1), "car": (0, 0), "cat": (2, 1), "chair": (0, 0), "clock": (0, 1),
    "cup": (2, 1), "dog": (0, 1), "donut": (0, 0), "elephant": (0, 0), "giraffe": (0, 0), "horse": (0, 1),
    "pizza": (0, 0), "scissors": (0, 0), "suitcase": (0, 0), "train": (0, 0), "tv": (0, 0), "umbrella": (1, 0),
}  # fmt: skip
CLASSES = tuple(GLYPHS)

COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 50),
    "green": (50, 180, 70),
    "blue": (50, 90, 225),
    "purple": (140, 60, 190),
    "pink": (245, 130, 190),
    "white": (250, 250, 250),
}

# name: (top colour, bottom colour, pattern); muted, so that every object colour stands out on every background
BACKGROUNDS = {
    "sky": ((150, 195, 235), (190, 220, 245), "plain"),
    "grass": ((90, 130, 70), (60, 100, 50), "stripes"),
    "sand": ((215, 195, 150), (195, 170, 120), "dots"),
    "sea": ((40, 110, 130), (20, 70, 100), "stripes"),
    "night": ((15, 15, 45), (35, 30, 70), "dots"),
    "brick": ((130, 75, 60), (115, 60, 50), "bricks"),
    "snow": ((205, 218, 232), (185, 200, 222), "dots"),
    "wood": ((120, 90, 60), (100, 70, 45), "planks"),
    "stone": ((130, 130, 135), (105, 105, 110), "bricks"),
    "sunset": ((225, 150, 120), (120, 80, 130), "plain"),
}

POSITIONS = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip

SPLITS = ("train", "validation", "test")
OBJECT_COUNT_WEIGHTS = (0.2, 0.35, 0.45, 0.25)  # of 1, 2, 3 and 4 objects, renormalised up to max_objects
EQUAL_OBJECTS_SHARE = 0.2  # of the scenes with more than one object: all are alike ("three red cars")


@dataclass(frozen=True)
class SceneObject:
    name: str
    color: str
    size: str
    cell: int  # 0 to 8 in raster order, an index into POSITIONS

    @property
    def position(self) -> str:
        return POSITIONS[self.cell]


@dataclass(frozen=True)
class Scene:
    background: str
    objects: tuple[SceneObject, ...]  # in raster order of their cells


def split_of(scene: Scene) -> str:
    """The one split a scene may appear in: 90% of all graphs are train, 5% validation, 5% test."""
    bucket = hashlib.blake2b(repr(scene).encode(), digest_size=2).digest()[0] % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def sample_scene(split: str, seed: int, index: int, *, max_objects: int = 3) -> Scene:
    """The scene number `index` of a split: the same for the same arguments, on any machine."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not 1 <= max_objects <= 4:
        raise ValueError(f"max_objects must be 1 to 4, got {max_objects}")
    rng = np.random.Generator(np.random.Philox(key=[SPLITS.index(split) << 32 | seed, index]))
    while True:
        scene = _draw(rng, max_objects)
        if split_of(scene) == split:
            return scene


def _draw(rng: np.random.Generator, max_objects: int) -> Scene:
    weights = np.array(OBJECT_COUNT_WEIGHTS[:max_objects])
    count = 1 + int(rng.choice(max_objects, p=weights / weights.sum()))
    cells = sorted(rng.choice(9, size=count, replace=False).tolist())
    looks = [(_pick(rng, CLASSES), _pick(rng, COLORS), _pick(rng, SIZES)) for _ in range(count)]
    if rng.random() < EQUAL_OBJECTS_SHARE:
        looks = looks[:1] * count
    return Scene(
        _pick(rng, BACKGROUNDS), tuple(SceneObject(*look, cell) for look, cell in zip(looks, cells, strict=True))
    )


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    options = tuple(names)
    return options[rng.integers(len(options))]


def render(scene: Scene) -> np.ndarray:
    """[96, 96, 3] uint8."""
    return render_scenes([scene])[0]


def render_scenes(scenes: Sequence[Scene], glyphs: Path | None = None) -> np.ndarray:
    """[N, 96, 96, 3] uint8; in another art style from a folder `glyphs` like scenes/glyphs, glyphs.json and all."""
    grounds, looks = list(BACKGROUNDS), _looks()
    canvas = _backgrounds()[[grounds.index(scene.background) for scene in scenes]]
    placed = [
        (row, *divmod(item.cell, 3), looks[item.name, item.color, item.size])
        for row, scene in enumerate(scenes)
        for item in scene.objects
    ]
    if placed:
        rows, down, across, sprites = np.array(placed).T
        color, alpha = np.split(_sprites(glyphs)[sprites], [3], axis=-1)
        cells = canvas.reshape(len(scenes), 3, CELL, 3, CELL, 3)
        cells[rows, down, :, across] = color + (1 - alpha) * cells[rows, down, :, across]
    return np.rint(canvas, out=canvas).astype(np.uint8)


def pictures(scenes: Sequence[Scene], glyphs: Path | None = None) -> Tensor:
    """[N, 3, 96, 96] in [0, 1]; in another art style as of `render_scenes`."""
    return torch.from_numpy(render_scenes(scenes, glyphs)).permute(0, 3, 1, 2).float() / 255


@functools.cache
def _backgrounds() -> np.ndarray:
    """[10, 96, 96, 3] float32."""
    return np.stack([_background(name) for name in BACKGROUNDS]).astype(np.float32)


@functools.cache
def _looks() -> dict[tuple[str, str, str], int]:
    """(class, color, size) -> its row in `_sprites`."""
    return {look: row for row, look in enumerate(itertools.product(CLASSES, COLORS, SIZES))}


@functools.cache
def _sprites(glyphs: Path | None = None) -> np.ndarray:
    """[looks, 32, 32, 4] float32: glyphs in the middle of a cell, color times alpha in 0..255 and alpha in 0..1."""
    sprites = np.zeros((len(_looks()), CELL, CELL, 4), np.float32)
    for (name, color, size), row in _looks().items():
        glyph = _glyph(name, color, size, glyphs)
        margin = (CELL - len(glyph)) // 2
        inner = slice(margin, margin + len(glyph))
        sprites[row, inner, inner] = np.concatenate([glyph[..., :3] * glyph[..., 3:], glyph[..., 3:]], axis=-1)
    return sprites


@functools.cache
def _background(name: str) -> np.ndarray:
    """[96, 96, 3] float: a vertical gradient with a faint pattern whose period divides the 16 px patch."""
    top, bottom, pattern = BACKGROUNDS[name]
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    mix = (y / (IMAGE_SIZE - 1))[..., None]
    canvas = (1 - mix) * np.array(top, float) + mix * np.array(bottom, float)
    brick_shift = 8 * (y // 8 % 2)
    marks = {
        "plain": np.zeros_like(x, bool),
        "stripes": y % 8 < 2,
        "dots": (y % 8 // 2 == 1) & (x % 8 // 2 == 1),
        "bricks": (y % 8 == 0) | ((x + brick_shift) % 16 == 0),
        "planks": x % 16 == 0,
    }[pattern]
    canvas[marks] *= 0.85
    return np.clip(canvas, 0, 255)


def _glyph(name: str, color: str, size: str, glyphs: Path | None = None) -> np.ndarray:
    """[s, s, 4] float RGB in 0..255 and alpha in 0..1: the glyph tinted by luminance (dark, colour, white)."""
    picture = _glyph_file(name, size, glyphs).resize((SIZES[size],) * 2, Image.Resampling.LANCZOS)
    rgba = np.asarray(picture, float)
    alpha = rgba[..., 3:] / 255
    luminance = rgba[..., :3] @ np.array([0.299, 0.587, 0.114])
    low, high = np.percentile(luminance[alpha[..., 0] > 0.5], [3, 97])
    light = np.clip((luminance - low) / max(high - low, 1), 0, 1)[..., None]
    base = np.array(COLORS[color], float)
    dark = np.minimum(light / 0.5, 1) * 0.75 + 0.25
    bright = np.maximum(light - 0.6, 0) / 0.4 * 0.5
    return np.concatenate([base * dark * (1 - bright) + 255 * bright, alpha], axis=-1)


@functools.cache
def _glyph_file(name: str, size: str = "large", glyphs: Path | None = None) -> Image.Image:
    folder = glyphs or resources.files("uae_lightning.scenes") / "glyphs"
    files = json.loads((folder / "glyphs.json").read_text())["classes"][name]["files"]
    look = min(GLYPHS[name][list(SIZES).index(size)], len(files) - 1)
    with (folder / files[look]).open("rb") as stream:
        return Image.open(stream).convert("RGBA")
