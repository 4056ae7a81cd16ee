"""Reads drawn scenes by comparing them with every picture that there could be: no training, no opinion.

Of each cell the nearest of all looks, or of the empty background, is what stands there. The distance that is left says
how clean the drawing is; a faint or doubled object is far from everything.
"""

from __future__ import annotations

import functools

from torch import Tensor

from uae_lightning.scenes.scene import BACKGROUNDS, CELL, CLASSES, COLORS, SIZES, Scene, SceneObject, pictures


def nearest_scenes(images: Tensor) -> tuple[list[Scene], Tensor]:
    """Pictures [N, 3, 96, 96] in [0, 1] -> the scenes they come nearest to, and their rms distance [N] from them."""
    cells = _cells(images)
    empty = _cells(pictures([Scene(name, ()) for name in BACKGROUNDS]))
    # most of a picture is background: the one that the median pixel comes nearest to
    off = (cells[:, None] - empty).abs().amax(3).flatten(2)  # [N, 10, 9 * CELL^2]
    grounds = off.median(-1).values.argmin(1)
    scenes, distances = [], images.new_zeros(len(images))
    for ground in grounds.unique().tolist():
        rows = (grounds == ground).nonzero().flatten()
        looks, errors = _match(cells[rows], ground)
        distances[rows] = errors.mean(1).sqrt()
        for row, of_cells in zip(rows.tolist(), looks.tolist(), strict=True):
            scenes.append((row, _scene(ground, of_cells)))
    return [scene for _, scene in sorted(scenes, key=lambda pair: pair[0])], distances


def _match(cells: Tensor, ground: int) -> tuple[Tensor, Tensor]:
    """Cells [n, 9, 3, CELL, CELL] -> number of the nearest look [n, 9], and mean squared distance from it."""
    templates = _templates(ground)  # [9, looks, P]
    flat = cells.flatten(2).transpose(0, 1)  # [9, n, P]
    products = flat @ templates.transpose(1, 2)
    squares = flat.square().sum(-1, keepdim=True) - 2 * products + templates.square().sum(-1).unsqueeze(1)
    nearest = squares.min(-1)
    return nearest.indices.T, nearest.values.T.clamp_min(0) / flat.shape[-1]


@functools.lru_cache(2)  # 42 MB each
def _templates(ground: int) -> Tensor:
    """[9, looks + 1, 3 * CELL^2]: every look in every cell on this background; the last is the empty cell."""
    name = list(BACKGROUNDS)[ground]
    scenes = [Scene(name, tuple(SceneObject(*look, cell) for cell in range(9))) for look in _looks()]
    return _cells(pictures([*scenes, Scene(name, ())])).flatten(2).transpose(0, 1).contiguous()


def _looks() -> list[tuple[str, str, str]]:
    return [(name, color, size) for name in CLASSES for color in COLORS for size in SIZES]


def _scene(ground: int, of_cells: list[int]) -> Scene:
    looks = _looks()
    objects = tuple(SceneObject(*looks[look], cell) for cell, look in enumerate(of_cells) if look < len(looks))
    return Scene(list(BACKGROUNDS)[ground], objects)


def _cells(images: Tensor) -> Tensor:
    """[N, 3, 96, 96] -> [N, 9, 3, CELL, CELL]."""
    tiles = images.unflatten(3, (3, CELL)).unflatten(2, (3, CELL))  # [N, 3, row, y, column, x]
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
