"""The faults of `evaluation.fault_costs` in scenes: one object missing, added, or with one wrong fact."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from uae_lightning.evaluation.fault_costs import Faulty
from uae_lightning.scenes.faults import faulty_scenes
from uae_lightning.scenes.scene import CLASSES, COLORS, SIZES, Scene, SceneObject, pictures, sample_scene

# what is wrong -> kind of `scenes.faults`; "added" is an object of another kind, which those do not have
KINDS = {
    "missing": "dropped", "added copy": "doubled", "added": "", "class": "class", "color": "color", "size": "size",
    "place": "moved",
}  # fmt: skip


def scene_cases(count: int = 96, seed: int = 0, batch: int = 16) -> Iterator[tuple[Tensor, Faulty]]:
    """Validation scenes of two and three objects and their faulty copies, batch by batch."""
    rng = np.random.default_rng(seed)
    stream = (sample_scene("validation", seed, index) for index in itertools.count())
    scenes = list(itertools.islice((scene for scene in stream if len(scene.objects) > 1), count))
    for first in range(0, count, batch):
        part = scenes[first : first + batch]
        yield pictures(part), {kind: pictures([_faulty(scene, kind, rng) for scene in part]) for kind in KINDS}


def _faulty(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    if kind == "added":
        taken = {item.cell for item in scene.objects}
        look = [str(rng.choice(list(names))) for names in (CLASSES, COLORS, SIZES)]
        item = SceneObject(*look, int(rng.choice([cell for cell in range(9) if cell not in taken])))
        return replace(scene, objects=(*scene.objects, item))
    options = faulty_scenes(scene, KINDS[kind])
    return options[rng.integers(len(options))]
