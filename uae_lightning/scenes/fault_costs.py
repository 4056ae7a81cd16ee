"""What a reward takes off for one fault of a drawing, in full and faint: print it before any reinforcement learning.

An object at half strength is half missing; one that should not be there at half strength is half added. A reward that
takes off more for half an added object than for half a missing one teaches a decoder that smears to leave things out:
it went up by .04 that way while GenEval fell by .06 (ours, docs/lab-notes.md).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch

from uae_lightning.interfaces import Reward
from uae_lightning.scenes.faults import faulty_scenes
from uae_lightning.scenes.instruments import scores
from uae_lightning.scenes.scene import CLASSES, COLORS, SIZES, Scene, SceneObject, pictures, sample_scene

# what is wrong -> kind of `scenes.faults`; "added" is an object of another kind, which those do not have
KINDS = {
    "missing": "dropped", "added copy": "doubled", "added": "", "class": "class", "color": "color", "size": "size",
    "place": "moved",
}  # fmt: skip
STRENGTHS = (1.0, 0.5)
Costs = dict[str, dict[float, list[float]]]  # kind -> strength -> what each scene loses


def fault_costs(judge: Reward, *, count: int = 96, seed: int = 0, batch: int = 16) -> Costs:
    """Score of the true picture less that of one with a single fault, which stands in it with this strength."""
    rng = np.random.default_rng(seed)
    scenes = list(itertools.islice(_scenes(seed), count))
    costs: Costs = {kind: {strength: [] for strength in STRENGTHS} for kind in KINDS}
    for first in range(0, count, batch):
        part = scenes[first : first + batch]
        true = pictures(part)
        faulty = {kind: pictures([_faulty(scene, kind, rng) for scene in part]) for kind in KINDS}
        cases = {(kind, s): true.lerp(images, s) for kind, images in faulty.items() for s in STRENGTHS}
        candidates = torch.stack([true, *cases.values()], 1).flatten(0, 1)
        found = scores(judge, true.repeat_interleave(1 + len(cases), 0), candidates).view(len(part), -1)
        for (kind, strength), lost in zip(cases, (found[:, :1] - found[:, 1:]).T.tolist(), strict=True):
            costs[kind][strength] += lost
    return costs


def evenness(costs: Costs) -> dict[float, float]:
    """Strength -> what a missing object costs, in units of an added one: 1 is even-handed."""
    mean = {kind: {s: float(np.mean(lost)) for s, lost in of_kind.items()} for kind, of_kind in costs.items()}
    return {s: 2 * mean["missing"][s] / (mean["added copy"][s] + mean["added"][s]) for s in STRENGTHS}


def costs_markdown(costs: Costs) -> str:
    """A row for each kind, a column for each strength."""
    head = ["one object", *(f"at strength {s:g}" for s in STRENGTHS)]
    rows = [[kind, *(f"{np.mean(of_kind[s]):.4f}" for s in STRENGTHS)] for kind, of_kind in costs.items()]
    rows.append(["missing : added", *(f"{ratio:.2f}" for ratio in evenness(costs).values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _faulty(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    if kind == "added":
        taken = {item.cell for item in scene.objects}
        look = [str(rng.choice(list(names))) for names in (CLASSES, COLORS, SIZES)]
        item = SceneObject(*look, int(rng.choice([cell for cell in range(9) if cell not in taken])))
        return replace(scene, objects=(*scene.objects, item))
    options = faulty_scenes(scene, KINDS[kind])
    return options[rng.integers(len(options))]


def _scenes(seed: int):
    """Validation scenes of two and three objects."""
    stream = (sample_scene("validation", seed, index) for index in itertools.count())
    return (scene for scene in stream if len(scene.objects) > 1)
