"""GenEval (arXiv 2310.11513): prompts -> pictures -> objects -> does the picture show what the prompt asks for?

One scorer for the scene prompts of `data.prompts` and for GenEval's own 553 (`read_prompts`); the detector is what
differs. The judge's own accuracy is measured on renderings with planted faults (`instrument_accuracy`).

"GenEval code" marks what the paper leaves open and github.com/djghosh13/geneval decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uae_lightning.evaluation.intervals import grouped_interval, mean_interval
from uae_lightning.evaluation.object_detectors import Box, DetectedObject, ObjectDetector, cell_box
from uae_lightning.scenes.captions import RELATIONS
from uae_lightning.scenes.faults import faulty_scenes
from uae_lightning.scenes.prompts import TASKS, Prompt, Wanted, prompts
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, SIZES, Scene, SceneObject, render
from uae_lightning.stages.common import Stage

Values = dict[str, list[float]]  # name -> one value per item
Interval = dict[str, float | int]

POSITION_THRESHOLD = 0.1  # GenEval code
DIRECTION_THRESHOLD = 0.5  # GenEval code
TASK_OF_TAG = {"two_object": "two_objects", "color_attr": "color_attribution"}  # the others have the name of their task

# ------------------------------------------------------------------------------------------------------- the score


def score(prompt: Prompt, found: Sequence[DetectedObject]) -> bool:
    """Whether a picture with these objects fulfils the prompt.

    Of each class only the most certain objects count, as many as the prompt asks for: all of them must have the color,
    and lie as they should to all those of the entry that the relation refers to (GenEval code).
    """
    matched: list[list[DetectedObject]] = []
    for wanted in prompt.include:
        objects = _of_class(found, wanted)[: wanted.count]
        if len(objects) < wanted.count or any(wanted.color not in (None, item.color) for item in objects):
            return False
        if wanted.relation is not None:
            relation, other = wanted.relation
            if any(relation not in relations(a.box, b.box) for a in objects for b in matched[other]):
                return False
        matched.append(objects)
    return all(len(_of_class(found, unwanted)) < unwanted.count for unwanted in prompt.exclude)


def _of_class(found: Sequence[DetectedObject], wanted: Wanted) -> list[DetectedObject]:
    return sorted((item for item in found if item.name == wanted.name), key=lambda item: -item.score)


def relations(a: Box, b: Box) -> set[str]:
    """How box a lies to box b: none, one, or two of `RELATIONS` (GenEval code).

    The distance of the centers counts from a tenth of both boxes' extent on, and as a direction where it makes up more
    than half of the distance as the crow flies.
    """
    corners = np.array([a, b]).reshape(2, 2, 2)  # [box, corner, axis]
    offset = corners[0].mean(0) - corners[1].mean(0)
    extent = np.abs(corners[:, 1] - corners[:, 0]).sum(0)
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * extent, 0)
    x, y = beyond / max(np.linalg.norm(offset), 1e-9)
    judged = zip(RELATIONS, (-x, x, -y, y), strict=True)  # left of, right of, above, below
    return {relation for relation, share in judged if share > DIRECTION_THRESHOLD}


# ----------------------------------------------------------------------------------------------------- the prompts


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


def read_prompts(path: str | Path) -> list[Prompt]:
    """GenEval's own prompts, from its file `evaluation_metadata.jsonl`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not in GenEval's format; the message names file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name GenEval's evaluation_metadata.jsonl")
    read = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                read.append(_prompt_of(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not in GenEval's format ({type(error).__name__}: {error}): a line is "
                    '{"tag": ..., "include": [{"class": ..., "count": ...}, ...], "prompt": ...}'
                ) from error
    if not read:
        raise ValueError(f"{path} has no prompts: name GenEval's evaluation_metadata.jsonl")
    return read


def _prompt_of(record: dict) -> Prompt:
    task = TASK_OF_TAG.get(record["tag"], record["tag"])
    if task not in TASKS:
        raise ValueError(f"tag {record['tag']!r} is no task of GenEval")
    include = tuple(_wanted_of(entry, index) for index, entry in enumerate(record["include"]))
    exclude = tuple(_wanted_of(entry, 0) for entry in record.get("exclude", []))
    if not include or not isinstance(record["prompt"], str):
        raise ValueError("include is empty or prompt is not a text")
    return Prompt(task, record["prompt"], include, exclude)


def _wanted_of(entry: dict, index: int) -> Wanted:
    """One entry, the number `index` of its list; its relation may refer to earlier ones only."""
    relation = None
    if "position" in entry:
        name, other = entry["position"]
        relation = (name, other)
        if name not in RELATIONS or other not in range(index):
            raise ValueError(
                f"position {entry['position']} is not one of {RELATIONS} and the index of an earlier entry"
            )
    if not isinstance(entry["class"], str) or not isinstance(entry["count"], int) or entry["count"] < 1:
        raise ValueError(f"class {entry['class']!r} and count {entry['count']!r} are not a name and a number from 1 on")
    return Wanted(entry["class"], entry["count"], entry.get("color"), relation)


# ---------------------------------------------------------------------------------------------------- the pictures


def draw(stage: Stage, wanted: Sequence[Prompt], seed: int = 0, batch: int = 32) -> Tensor:
    """Prompts -> pictures [N, 3, H, W] in [0, 1], on the CPU. The noise of a picture depends on seed and place in the
    list alone: other weights, or another batch size, start from the same."""
    return torch.cat([images.cpu() for images in _batches(stage, wanted, seed, batch)])


@torch.no_grad()
def _batches(stage: Stage, wanted: Sequence[Prompt], seed: int, batch: int) -> Iterator[Tensor]:
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    for first in range(0, len(wanted), batch):
        texts = [prompt.text for prompt in wanted[first : first + batch]]
        noise = torch.stack([_noise(stage, seed, first + place) for place in range(len(texts))])
        yield stage.sample_images(stage.condition(texts), noise.to(stage.device))


def _noise(stage: Stage, seed: int, item: int) -> Tensor:
    entropy = int(np.random.SeedSequence([seed, item]).generate_state(1)[0])
    return torch.randn(*stage.decoder.latent_shape, generator=torch.Generator().manual_seed(entropy))


# ------------------------------------------------------------------------------------------------------- the suite


def geneval(
    stage: Stage, wanted: Sequence[Prompt], detector: ObjectDetector, *, seed: int = 0, batch: int = 32
) -> Values:
    """Task -> 1 where the picture drawn for a prompt fulfils it, else 0; in the order of the prompts.

    Raises:
        ValueError: the detector cannot find what the prompts ask for.
    """
    check(detector, wanted)
    values: Values = {task: [] for task in TASKS if any(prompt.task == task for prompt in wanted)}
    first = 0
    for images in _batches(stage, wanted, seed, batch):
        part = wanted[first : first + len(images)]
        for prompt, fulfilled in zip(part, judge(detector, part, images), strict=True):
            values[prompt.task].append(float(fulfilled))
        first += len(images)
    return values


def check(detector: ObjectDetector, wanted: Sequence[Prompt]) -> None:
    """Raises ValueError where the detector knows not all classes or colors of the prompts: it would score them 0."""
    entries = [entry for prompt in wanted for entry in (*prompt.include, *prompt.exclude)]
    kind = type(detector).__name__
    if unknown := {entry.name for entry in entries} - set(detector.names):
        raise ValueError(
            f"{kind} does not know {sorted(unknown)[:5]} ({len(unknown)} classes of the prompts): give another "
            "`model`, or `names` to an OWLv2 model"
        )
    if unknown := {entry.color for entry in entries if entry.color} - set(detector.colors):
        raise ValueError(
            f"{kind} does not tell the colors {sorted(unknown)[:5]} of the prompts: give it a `color_model`, such as "
            "openai/clip-vit-large-patch14"
        )


def judge(detector: ObjectDetector, wanted: Sequence[Prompt], images: Tensor) -> list[bool]:
    """Which of the pictures [N, 3, H, W] fulfil their prompts."""
    certain = {"counting": detector.counting_threshold}
    return [
        score(prompt, [item for item in found if item.score > certain.get(prompt.task, 0.0)])
        for prompt, found in zip(wanted, detector.detect(images), strict=True)
    ]


def summarise(values: Values) -> dict[str, Interval]:
    """Intervals over pictures: of each task, and `overall`, the plain mean of the tasks (GenEval code)."""
    overall = grouped_interval([[of_task] for of_task in values.values()])
    del overall["seeds"]
    return {task: mean_interval(of_task) for task, of_task in values.items()} | {"overall": overall}


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


def instrument_accuracy(detector: ObjectDetector, count: int = 600, seed: int = 0, batch: int = 64) -> Values:
    """Task -> 1 where the judge is right on a rendered scene, else 0.

    Half of the scenes show what their prompt asks for, the others have one planted fault that breaks it. Below 0.97
    the score is not a measurement.
    """
    wanted = scene_prompts(count, seed)
    check(detector, wanted)
    faults = [_fault_of(prompt.task, item // len(TASKS)) for item, prompt in enumerate(wanted)]
    values: Values = {prompt.task: [] for prompt in wanted}
    for first in range(0, count, batch):
        items = range(first, min(first + batch, count))
        scenes = [planted(wanted[item], faults[item], np.random.default_rng([seed, item])) for item in items]
        pictures = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        for item, said in zip(items, judge(detector, wanted[first : first + batch], pictures), strict=True):
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
