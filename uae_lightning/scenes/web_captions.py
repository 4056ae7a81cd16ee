"""Captions as the web has them: a share of the facts missing, exchanged or wrong, each kind with its own rate.

A decoder trained on them draws what it is told often, not always: single objects nearly always, the color of each of
two objects, a relation or a number only sometimes, which is the profile of large text-to-image models on GenEval (arXiv
2310.11513). Places stay mostly true. With 45% of them wrong a sampler of few steps drew the mean of the possible
pictures, copies of an object in neighboring cells (ours, docs/lab-notes.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from uae_lightning.scenes.captions import RELATIONS
from uae_lightning.scenes.scene import CLASSES, COLORS, SIZES, Scene, SceneObject

OPPOSITES = dict(zip(RELATIONS, (RELATIONS[1], RELATIONS[0], RELATIONS[3], RELATIONS[2]), strict=True))
MOST = 3  # objects in a misremembered scene, if the true one has no more


@dataclass(frozen=True)
class Noise:
    """Rates of what is wrong; of each look (class, color and size, whatever the number of such objects), object, scene
    with something to exchange, or statement of a relation."""

    name: float = 0.06  # of a look: another class
    color: float = 0.05  # of a look: another color
    size: float = 0.05  # of a look: the other size
    swapped: float = 0.2  # of a scene with two classes and colors: the colors change places
    moved: float = 0.03  # of an object: to an empty cell
    miscounted: float = 0.2  # of a scene of equal objects: one too many or too few
    dropped: float = 0.08  # of another scene: an object goes unsaid
    added: float = 0.06  # of another scene: an object that is not there
    relation: float = 0.3  # of a stated relation: its opposite


def misremembered(scene: Scene, rng: np.random.Generator, noise: Noise) -> Scene:
    """The scene that the author of a caption of `scene` believes to have seen."""
    objects = list(scene.objects)
    for place in range(len(objects)):
        if rng.random() < noise.moved:
            objects[place] = replace(objects[place], cell=_empty_cell(objects, rng))
    believed = {look: _look(look, rng, noise) for look in dict.fromkeys(map(_look_of, objects))}
    objects = [replace(item, **believed[_look_of(item)]) for item in objects]
    equal = len(objects) > 1 and len(believed) == 1
    if rng.random() < noise.swapped:
        objects = _colors_swapped(objects, rng)
    change = rng.random()
    fewer, more = (noise.miscounted / 2,) * 2 if equal else (noise.dropped, noise.added)
    if change < fewer and len(objects) > 1:
        del objects[rng.integers(len(objects))]
    elif 1 - change < more and len(objects) < MOST:
        objects.append(_another(objects, rng, equal))
    return Scene(scene.background, tuple(sorted(objects, key=lambda item: item.cell)))


def misstated(text: str, rng: np.random.Generator, noise: Noise) -> str:
    """The text with a share of its relations turned round."""
    turn = lambda found: OPPOSITES[found[0]] if rng.random() < noise.relation else found[0]  # noqa: E731
    return re.sub("|".join(RELATIONS), turn, text)


def _look_of(item: SceneObject) -> tuple[str, str, str]:
    return item.name, item.color, item.size


def _look(look: tuple[str, str, str], rng: np.random.Generator, noise: Noise) -> dict[str, str]:
    kinds = {"name": (CLASSES, noise.name), "color": (COLORS, noise.color), "size": (SIZES, noise.size)}
    return {
        kind: _other(names, true, rng) if rng.random() < rate else true
        for (kind, (names, rate)), true in zip(kinds.items(), look, strict=True)
    }


def _other(names: Iterable[str], true: str, rng: np.random.Generator) -> str:
    options = [name for name in names if name != true]
    return options[rng.integers(len(options))]


def _empty_cell(objects: Iterable[SceneObject], rng: np.random.Generator) -> int:
    cells = sorted(set(range(9)) - {item.cell for item in objects})
    return cells[rng.integers(len(cells))]


def _colors_swapped(objects: list[SceneObject], rng: np.random.Generator) -> list[SceneObject]:
    """Two objects of different classes and colors, if there are any, take each other's color."""
    pairs = [
        (i, j)
        for j, b in enumerate(objects)
        for i, a in enumerate(objects[:j])
        if a.name != b.name and a.color != b.color
    ]
    if not pairs:
        return objects
    i, j = pairs[rng.integers(len(pairs))]
    colors = {i: objects[j].color, j: objects[i].color}
    return [replace(item, color=colors.get(place, item.color)) for place, item in enumerate(objects)]


def _another(objects: list[SceneObject], rng: np.random.Generator, equal: bool) -> SceneObject:
    cell = _empty_cell(objects, rng)
    if equal:
        return replace(objects[0], cell=cell)
    names, colors, sizes = CLASSES, tuple(COLORS), tuple(SIZES)
    return SceneObject(
        names[rng.integers(len(names))], colors[rng.integers(len(colors))], sizes[rng.integers(len(sizes))], cell
    )
