"""What a decoder draws of true captions and of prompts never seen, read by comparison (`scenes.templates`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from uae_lightning.evaluation.geneval import TASKS, score
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.geneval import perfect, scene_prompts
from uae_lightning.scenes.scene import Scene, sample_scene
from uae_lightning.scenes.templates import nearest_scenes

Sample = Callable[[list[str], float], Tensor]  # captions, guidance -> pictures [N, 3, 96, 96]


def drawing_figures(sample: Sample, *, scenes: int = 64, prompts: int = 144) -> dict[str, dict[str, float]]:
    """Figures at guidance 1 and 2."""
    return {f"guidance {g:g}": of_captions(sample, g, scenes) | of_prompts(sample, g, prompts) for g in (1.0, 2.0)}


def of_captions(sample: Sample, guidance: float, count: int, level: str = "short") -> dict[str, float]:
    """Of complete true captions of validation scenes: share of objects that stand where they should, of those the share
    with the right class, color and size; objects a scene where none should be; distance from any clean picture."""
    wanted = [sample_scene("validation", 1, i) for i in range(count)]
    captions = [write_caption(scene, np.random.default_rng([1, i]), level=level) for i, scene in enumerate(wanted)]
    drawn, distance = nearest_scenes(sample(captions, guidance))
    return compare(drawn, wanted) | {"distance": round(distance.mean().item(), 4)}


def compare(drawn: list[Scene], wanted: list[Scene]) -> dict[str, float]:
    cells = [({a.cell: a for a in scene.objects}, {b.cell: b for b in true.objects})
             for scene, true in zip(drawn, wanted, strict=True)]  # fmt: skip
    pairs = [(seen[cell], item) for seen, true in cells for cell, item in true.items() if cell in seen]
    objects = sum(len(scene.objects) for scene in wanted)
    added = sum(len(seen.keys() - true.keys()) for seen, true in cells)
    figures = {"present": len(pairs) / objects, "added": added / len(wanted)}
    for kind, field in (("class", "name"), ("color", "color"), ("size", "size")):
        figures[kind] = sum(getattr(a, field) == getattr(b, field) for a, b in pairs) / max(len(pairs), 1)
    grounds = [scene.background == true.background for scene, true in zip(drawn, wanted, strict=True)]
    figures["background"] = sum(grounds) / len(grounds)
    return {name: round(value, 3) for name, value in figures.items()}


def of_prompts(sample: Sample, guidance: float, count: int) -> dict[str, float]:
    """Share of prompts fulfilled in each of GenEval's tasks, and their mean."""
    wanted = scene_prompts(count)
    drawn, _ = nearest_scenes(sample([prompt.text for prompt in wanted], guidance))
    hits = {task: [] for task in TASKS}
    for prompt, scene in zip(wanted, drawn, strict=True):
        hits[prompt.task].append(score(prompt, perfect(scene)))
    shares = {task: round(float(np.mean(of_task)), 2) for task, of_task in hits.items()}
    return shares | {"geneval": round(float(np.mean(list(shares.values()))), 3)}
