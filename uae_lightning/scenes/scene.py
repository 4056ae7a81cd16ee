"""Scenes: the embedded data set, endless 64 x 64 pictures with an exact scene graph.

A scene is a background and one to four objects on a 3 x 3 grid. It is a pure function of (split, seed, index): nothing
is stored, any process can render any scene, and a hash of the graph assigns each scene to exactly one split.

The grid has a stride of 24 px, a multiple of the 8 px patches of the latent codec, so that an object looks the same to
the codec in every cell; small backbones then learn its shape once instead of nine times (ours, measured in
docs/lab-notes.md).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

import numpy as np
from PIL import Image

IMAGE_SIZE = 64
CELL_CENTERS = (8, 32, 56)
SIZES = {"large": 20, "small": 13}  # px

# Glyphs chosen for outlines that stay distinct at 13 px; the first picture of each class is the one used.
CLASSES = (
    "airplane", "apple", "banana", "bicycle", "boat", "bus", "car", "cat",
    "chair", "clock", "cup", "elephant", "giraffe", "scissors", "train", "umbrella",
)  # fmt: skip

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

MASK_STEP = 12  # of 255: what an object must change of a pixel to cover it
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
    """[64, 64, 3] uint8."""
    canvas = _background(scene.background).copy()
    for item in scene.objects:
        glyph = _glyph(item.name, item.color, item.size)  # [s, s, 4] float, alpha in [0, 1]
        side = glyph.shape[0]
        top = CELL_CENTERS[item.cell // 3] - side // 2
        left = CELL_CENTERS[item.cell % 3] - side // 2
        rows = slice(max(top, 0), min(top + side, IMAGE_SIZE))
        cols = slice(max(left, 0), min(left + side, IMAGE_SIZE))
        part = glyph[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        alpha = part[..., 3:]
        canvas[rows, cols] = alpha * part[..., :3] + (1 - alpha) * canvas[rows, cols]
    return canvas.round().astype(np.uint8)


def object_mask(scene: Scene) -> np.ndarray:
    """[64, 64] bool: where an object covers the background."""
    difference = render(scene).astype(int) - render(Scene(scene.background, ())).astype(int)
    return np.abs(difference).max(-1) > MASK_STEP


@functools.cache
def _background(name: str) -> np.ndarray:
    """[64, 64, 3] float: a vertical gradient with a faint pattern whose period divides the 8 px patch."""
    top, bottom, pattern = BACKGROUNDS[name]
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    mix = (y / (IMAGE_SIZE - 1))[..., None]
    canvas = (1 - mix) * np.array(top, float) + mix * np.array(bottom, float)
    brick_shift = 4 * (y // 8 % 2)
    marks = {
        "plain": np.zeros_like(x, bool),
        "stripes": y % 8 < 2,
        "dots": (y % 8 == 3) & (x % 8 == 3),
        "bricks": (y % 8 == 0) | ((x + brick_shift) % 8 == 0),
        "planks": x % 8 == 0,
    }[pattern]
    canvas[marks] *= 0.85
    return np.clip(canvas, 0, 255)


@functools.cache
def _glyph(name: str, color: str, size: str) -> np.ndarray:
    """[s, s, 4] float RGB in 0..255 and alpha in 0..1: the glyph tinted by luminance (dark, colour, white)."""
    picture = _glyph_file(name).resize((SIZES[size],) * 2, Image.Resampling.LANCZOS)
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
def _glyph_file(name: str) -> Image.Image:
    folder = resources.files("uae_lightning.scenes") / "glyphs"
    index = json.loads((folder / "glyphs.json").read_text())["classes"]
    with (folder / index[name]["files"][0]).open("rb") as stream:
        return Image.open(stream).convert("RGBA")
