"""GenEval (arXiv 2310.11513): prompts -> pictures -> objects -> does the picture show what the prompt asks for?

One scorer for GenEval's own 553 prompts (`read_prompts`) and any others; the detector is what differs.

"GenEval code" marks what the paper leaves open and github.com/djghosh13/geneval decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.evaluation.drawing import drawn
from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.object_detectors import Box, DetectedObject, ObjectDetector
from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite, sampled_as
from uae_lightning.refinement import Refinement
from uae_lightning.types import Sampling

TASKS = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
RELATIONS = ("left of", "right of", "above", "below")
POSITION_THRESHOLD = 0.1  # GenEval code
DIRECTION_THRESHOLD = 0.5  # GenEval code
TASK_OF_TAG = {"two_object": "two_objects", "color_attr": "color_attribution"}  # the others have the name of their task


@dataclass(frozen=True)
class Wanted:
    """One entry of GenEval's `include` or `exclude`."""

    name: str
    count: int = 1  # in `include` at least so many, in `exclude` at least so many spoil the picture
    color: str | None = None
    relation: tuple[str, int] | None = None  # ("left of", index of the other entry of `include`)


@dataclass(frozen=True)
class Prompt:
    task: str
    text: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


class GenEval(Suite):
    """The share of prompts that pictures fulfil, by task.

    Args:
        detector: of the objects that prompts ask for.
        prompts: GenEval's evaluation_metadata.jsonl. As many drawings as the evaluation has: its 553 prompts four times
            are 2212.
        sampling: how pictures are drawn here; None is as everywhere in the evaluation.
        rewriting: how prompts are rewritten before they are drawn; at temperature 0 a rewriting depends on its prompt
            alone. None: they are drawn as they are.
        refinement: of several drawings the best is judged; its verifier judges by the prompts, and must not be the
            detector. None: each prompt is drawn once.
    """

    about = "prompt -> picture: GenEval's six tasks, read by an object detector"
    of_tasks = True

    def __init__(
        self,
        detector: ObjectDetector,
        prompts: str,
        sampling: Sampling | None = None,
        rewriting: Captioning | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        super().__init__()
        self.detector, self.path = detector, prompts
        self.sampling, self.rewriting, self.refinement = sampling, rewriting, refinement
        if refinement is not None:
            refinement.check(originals=False)
            self.verifier = refinement.verifier

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        """A prompt for each drawing."""
        return list(islice(cycle(read_prompts(self.path)), count))

    def measure(self, subject: Subject) -> Items:
        wanted = self.prompts(subject.drawings, subject.seed)
        with sampled_as(subject.model, self.sampling):
            return geneval(
                subject.model, wanted, self.detector, seed=subject.seed, batch=subject.batch_size,
                rewriting=self.rewriting, refinement=self.refinement,
            )  # fmt: skip

    def instrument(self, name: str) -> str:
        return f"geneval/{name}"

    def groups(self, figures: Figures) -> list[Group]:
        rows = (Row(OVERALL, "overall"), *(Row(task, task.replace("_", " ")) for task in TASKS))
        text = "GenEval's six tasks, from prompts never seen in training: share of pictures that are right"
        return [Group("Drawing", "; ".join([text, *self.settings()]), rows)]

    def settings(self) -> list[str]:
        """How pictures are drawn here and not elsewhere, in words."""
        found = []
        if self.sampling is not None:
            found.append(f"{self.sampling.steps} steps with guidance {self.sampling.guidance:g}")
        if self.rewriting is not None:
            found.append("prompts rewritten by the encoder")
        if (refinement := self.refinement) is not None:
            best = f"the best of {refinement.candidates} by {type(refinement.verifier).__name__}"
            found.append(f"{best}, {refinement.rounds} rounds" if refinement.rounds > 1 else best)
        return found


def geneval(
    model: AutoEncoder,
    wanted: Sequence[Prompt],
    detector: ObjectDetector,
    *,
    seed: int = 0,
    batch: int = 32,
    rewriting: Captioning | None = None,
    refinement: Refinement | None = None,
) -> Items:
    """Task -> 1 where the picture drawn for a prompt fulfils it, else 0; in the order of the prompts.

    Raises:
        ValueError: the detector cannot find what the prompts ask for.
    """
    check(detector, wanted)
    values: Items = {task: [] for task in TASKS if any(prompt.task == task for prompt in wanted)}
    first = 0
    for images in drawn(model, [prompt.text for prompt in wanted], seed, batch, rewriting, refinement):
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
    return [score(prompt, found) for prompt, found in zip(wanted, certain(detector, wanted, images), strict=True)]


def certain(detector: ObjectDetector, wanted: Sequence[Prompt], images: Tensor) -> list[list[DetectedObject]]:
    """The objects in each of the pictures [N, 3, H, W] that count for the task of its prompt."""
    thresholds = {"counting": detector.counting_threshold}
    return [
        [item for item in found if item.score > thresholds.get(prompt.task, 0.0)]
        for prompt, found in zip(wanted, detector.detect(images), strict=True)
    ]


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


def share(prompt: Prompt, found: Sequence[DetectedObject]) -> float:
    """How much of what the prompt asks for is there, in [0, 1]; 1 where `score` is True and nowhere else.

    The mean over the entries of `include`, each by its share of objects that are there and right, and of `exclude`.
    """
    values: list[float] = []
    matched: list[list[DetectedObject]] = []
    for wanted in prompt.include:
        objects = _of_class(found, wanted)[: wanted.count]
        right = [item for item in objects if wanted.color in (None, item.color)]
        if wanted.relation is not None:
            relation, others = wanted.relation[0], matched[wanted.relation[1]]
            right = [a for a in right if others and all(relation in relations(a.box, b.box) for b in others)]
        matched.append(objects)
        values.append(len(right) / wanted.count)
    values += [float(len(_of_class(found, unwanted)) < unwanted.count) for unwanted in prompt.exclude]
    return sum(values) / len(values)


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


def read_prompts(path: str | Path) -> list[Prompt]:
    """GenEval's own prompts, from its file `evaluation_metadata.jsonl`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not in GenEval's format; the message names file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: name GenEval's evaluation_metadata.jsonl, of github.com/djghosh13/geneval"
        )
    read = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                read.append(prompt_of(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not in GenEval's format ({type(error).__name__}: {error}): a line is "
                    '{"tag": ..., "include": [{"class": ..., "count": ...}, ...], "prompt": ...}'
                ) from error
    if not read:
        raise ValueError(f"{path} has no prompts: name GenEval's evaluation_metadata.jsonl")
    return read


def prompt_of(record: dict[str, Any]) -> Prompt:
    """Of a row of GenEval's file; a ValueError, KeyError, TypeError or AttributeError where it is none."""
    task = TASK_OF_TAG.get(record["tag"], record["tag"])
    if task not in TASKS:
        raise ValueError(f"tag {record['tag']!r} is no task of GenEval")
    include = tuple(_wanted_of(entry, index) for index, entry in enumerate(record["include"]))
    exclude = tuple(_wanted_of(entry, 0) for entry in record.get("exclude", []))
    if not include or not isinstance(record["prompt"], str):
        raise ValueError("include is empty or prompt is not a text")
    return Prompt(task, record["prompt"], include, exclude)


def record_of(prompt: Prompt) -> dict[str, Any]:
    """What GenEval's file says of a prompt, the inverse of `prompt_of`."""
    tags = {task: tag for tag, task in TASK_OF_TAG.items()}
    record = {"tag": tags.get(prompt.task, prompt.task), "prompt": prompt.text}
    return record | {name: [_entry_of(one) for one in getattr(prompt, name)] for name in ("include", "exclude")}


def _entry_of(wanted: Wanted) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": wanted.name, "count": wanted.count}
    entry |= {} if wanted.color is None else {"color": wanted.color}
    return entry | ({} if wanted.relation is None else {"position": list(wanted.relation)})


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


def draw(model: AutoEncoder, wanted: Sequence[Prompt], seed: int = 0, batch: int = 32) -> Tensor:
    """Prompts -> pictures [N, 3, H, W] in [0, 1], on the CPU."""
    return torch.cat([images.cpu() for images in drawn(model, [prompt.text for prompt in wanted], seed, batch)])
