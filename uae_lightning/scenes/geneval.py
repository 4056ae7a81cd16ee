"""GenEval on the embedded default: prompts about scenes, and how often its judge is right where the truth is known."""

from __future__ import annotations

import numpy as np

from uae_lightning.evaluation.geneval import TASKS, GenEval, Prompt, check, judge, score
from uae_lightning.evaluation.object_detectors import DetectedObject, ObjectDetector
from uae_lightning.evaluation.statistics import Items
from uae_lightning.scenes.faults import faulty_scenes
from uae_lightning.scenes.object_detector import cell_box
from uae_lightning.scenes.prompts import prompts
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, SIZES, Scene, SceneObject, pictures


class SceneGenEval(GenEval):
    """GenEval with the held-out prompts of `scenes.prompts`.

    Args:
        detector: of scene objects.
        **drawing: sampling, rewriting and refinement, as in GenEval.
    """

    def __init__(self, detector: ObjectDetector, **drawing) -> None:
        super().__init__(detector, prompts="", **drawing)

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        return scene_prompts(count, seed)


def scene_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts never seen in training, the six tasks in turn.

    Every seed has an order of its own. A task with fewer held-out prompts than asked for repeats them; each time the
    noise is another, as in GenEval, which draws four pictures of each prompt.
    """
    orders = []
    for index, task in enumerate(TASKS):
        held_out = prompts(task, held_out=True)
        orders.append([held_out[i] for i in np.random.default_rng([seed, index]).permutation(len(held_out))])
    turns = (divmod(item, len(TASKS)) for item in range(count))
    return [orders[task][turn % len(orders[task])] for turn, task in turns]


# ----------------------------------------------------------------------------------------- the judge's own accuracy

# kind of fault (data.faults) -> tasks whose prompts it makes untrue, if it hits the objects that are asked for
BREAKS = {
    "class": TASKS,
    "dropped": TASKS,
    "color": ("colors", "color_attribution"),
    "colors_swapped": ("colors", "color_attribution"),
    "doubled": ("counting",),
    "swapped": ("position",),
    "moved": ("position",),
}


def instrument_accuracy(detector: ObjectDetector, count: int = 600, seed: int = 0, batch: int = 64) -> Items:
    """Task -> 1 where the judge is right on a rendered scene, else 0.

    Half of the scenes show what their prompt asks for, the others have one planted fault that breaks it. Below 0.97
    the score is not a measurement.
    """
    wanted = scene_prompts(count, seed)
    check(detector, wanted)
    faults = [_fault_of(prompt.task, item // len(TASKS)) for item, prompt in enumerate(wanted)]
    values: Items = {prompt.task: [] for prompt in wanted}
    for first in range(0, count, batch):
        items = range(first, min(first + batch, count))
        scenes = [planted(wanted[item], faults[item], np.random.default_rng([seed, item])) for item in items]
        said_of = judge(detector, wanted[first : first + batch], pictures(scenes))
        for item, said in zip(items, said_of, strict=True):
            values[wanted[item].task].append(float(said == (faults[item] is None)))
    return values


def _fault_of(task: str, turn: int) -> str | None:
    """None at even turns; at odd ones, one after the other, the faults that break prompts of this task."""
    fitting = [fault for fault, broken in BREAKS.items() if task in broken]
    return fitting[turn // 2 % len(fitting)] if turn % 2 else None


def planted(prompt: Prompt, fault: str | None, rng: np.random.Generator) -> Scene:
    """A scene that shows what a scene prompt asks for (places are not part of it), or fails to by one fault."""
    while True:
        scene = _fulfilling(prompt, rng)
        if fault is None:
            return scene
        if options := [faulty for faulty in faulty_scenes(scene, fault) if not score(prompt, perfect(faulty))]:
            return options[rng.integers(len(options))]


def perfect(scene: Scene) -> list[DetectedObject]:
    """What a detector without errors finds."""
    return [DetectedObject(item.name, cell_box(item.cell, item.size), 1.0, item.color) for item in scene.objects]


def _fulfilling(prompt: Prompt, rng: np.random.Generator, max_objects: int = 3) -> Scene:
    """What the prompt asks for, and up to `max_objects` in all, of other classes."""
    asked = [wanted for wanted in prompt.include for _ in range(wanted.count)]
    others = sorted(set(CLASSES) - {wanted.name for wanted in asked})
    names = [wanted.name for wanted in asked]
    names += rng.choice(others, rng.integers(max(max_objects - len(asked), 0) + 1)).tolist()
    colors = [wanted.color for wanted in asked] + [None] * (len(names) - len(asked))
    looks = [
        (name, color or str(rng.choice(list(COLORS))), str(rng.choice(list(SIZES))))
        for name, color in zip(names, colors, strict=True)
    ]
    background = str(rng.choice(list(BACKGROUNDS)))
    while True:
        cells = rng.choice(9, len(looks), replace=False).tolist()
        objects = [SceneObject(*look, cell) for look, cell in zip(looks, cells, strict=True)]
        scene = Scene(background, tuple(sorted(objects, key=lambda item: item.cell)))
        if score(prompt, perfect(scene)):
            return scene
