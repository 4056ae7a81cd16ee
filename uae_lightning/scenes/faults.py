"""Scenes with exactly one wrong fact: hard negatives to train on, and planted faults that a judge must notice.

class, color, size   of one object
moved                one object to an empty cell
swapped              two unlike objects change places
colors_swapped       two objects of different classes change colours
dropped, doubled     one object is missing; one stands there twice
background
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, OBJECT_COUNT_WEIGHTS, SIZES, Scene, SceneObject

LOOKS = {"class": ("name", CLASSES), "color": ("color", tuple(COLORS)), "size": ("size", tuple(SIZES))}
FAULTS = (*LOOKS, "moved", "swapped", "colors_swapped", "dropped", "doubled", "background")
CELLS = range(9)


def with_fault(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """The scene with one wrong fact of this kind.

    Raises:
        ValueError: there is no such kind, or this scene cannot have it (nothing to swap, nothing left if dropped).
    """
    options = faulty_scenes(scene, kind)
    if not options:
        raise ValueError(f"a scene of {len(scene.objects)} such objects cannot have the fault {kind!r}")
    return options[rng.integers(len(options))]


def faulty_scenes(scene: Scene, kind: str) -> list[Scene]:
    """Every scene that differs from `scene` by one fault of this kind; none where it cannot have it."""
    if kind not in FAULTS:
        raise ValueError(f"kind must be one of {FAULTS}, got {kind!r}")
    if kind == "background":
        return [replace(scene, background=name) for name in BACKGROUNDS if name != scene.background]
    return [_exchanged(scene, *change) for change in _changes(scene.objects, kind)]


def _changes(objects: tuple[SceneObject, ...], kind: str) -> list[tuple[tuple, tuple]]:
    """(objects that go, objects that come) of every fault of this kind."""
    empty = [cell for cell in CELLS if cell not in {item.cell for item in objects}]
    pairs = list(itertools.combinations(objects, 2))
    if kind in LOOKS:
        key, names = LOOKS[kind]
        return [((a,), (replace(a, **{key: x}),)) for a in objects for x in names if x != getattr(a, key)]
    if kind == "moved":
        return [((a,), (replace(a, cell=cell),)) for a in objects for cell in empty]
    if kind == "swapped":
        unlike = [(a, b) for a, b in pairs if a != replace(b, cell=a.cell)]
        return [((a, b), (replace(a, cell=b.cell), replace(b, cell=a.cell))) for a, b in unlike]
    if kind == "colors_swapped":
        unlike = [(a, b) for a, b in pairs if a.color != b.color and a.name != b.name]
        return [((a, b), (replace(a, color=b.color), replace(b, color=a.color))) for a, b in unlike]
    if kind == "dropped":
        return [((a,), ()) for a in objects] if len(objects) > 1 else []
    full = len(objects) == len(OBJECT_COUNT_WEIGHTS)  # captions count no further
    return [] if full else [((), (replace(a, cell=cell),)) for a in objects for cell in empty]


def _exchanged(scene: Scene, gone: tuple[SceneObject, ...], come: tuple[SceneObject, ...]) -> Scene:
    objects = [item for item in scene.objects if item not in gone] + list(come)
    return replace(scene, objects=tuple(sorted(objects, key=lambda item: item.cell)))
