"""Short prompts about scenes, in the six tasks of GenEval (arXiv 2310.11513), a quarter of them never seen in training.

    single_object      a picture of a cat at the center
    two_objects        a picture of a cat at the center and a bus at the top left
    counting           a picture of two cats at the center and the top left
    colors             a picture of a red cat at the center
    position           a picture of a cat left of a bus at the center
    color_attribution  a picture of a red cat at the center and a blue bus at the top left

A prompt names every object and leaves the rest open: size, background, often the colour. Places are given, other than
in GenEval's own prompts: a small decoder that must guess them among nine cells draws something faint in all of them
(ours, docs/lab-notes.md). What a prompt asks for is kept in the form of GenEval's metadata (`include`, `exclude`), so
that one scorer reads these prompts and the original 553.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np

from uae_lightning.evaluation.geneval import RELATIONS, TASKS, Prompt, Wanted
from uae_lightning.scenes.captions import COUNTS, PLURALS, SINGULARS, ObjectFact, parse_caption
from uae_lightning.scenes.scene import CLASSES, COLORS, POSITIONS, Scene, SceneObject

MAX_COUNT = 3  # objects a default scene can hold
LISTED = 240  # prompts of a task that `prompts` returns


def is_held_out(text: str) -> bool:
    """Whether training must not see this prompt: true of a quarter of all."""
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] < 64


@functools.cache
def prompts(task: str, *, held_out: bool) -> tuple[Prompt, ...]:
    """Up to LISTED different prompts of a task that are (not) held out, in an order that is the same everywhere.

    Raises:
        ValueError: no such task.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    rng = np.random.default_rng([TASKS.index(task), held_out])
    found: dict[str, Prompt] = {}
    for _ in range(20 * LISTED):  # some tasks have fewer
        prompt = make_prompt(task, _imagined(task, rng), rng)
        if is_held_out(prompt.text) == held_out:
            found.setdefault(prompt.text, prompt)
        if len(found) == LISTED:
            break
    return tuple(found.values())


def training_prompt(scene: Scene, rng: np.random.Generator) -> str | None:
    """A prompt that names all objects of `scene` and is not held out; None where there is none.

    Of neighbors, and of them alone, it mostly says how they lie to each other: "left of" then leaves no place open.
    """
    tasks = [task for task in rng.permutation(TASKS) if _fits(task, scene.objects)]
    if "position" in tasks and rng.random() < 2 / 3:
        tasks.sort(key="position".__ne__)
    texts = [make_prompt(task, scene.objects, rng).text for task in tasks]
    return next((text for text in texts if not is_held_out(text)), None)


def make_prompt(task: str, objects: Sequence[SceneObject], rng: np.random.Generator) -> Prompt:
    """The prompt of this task about objects that fit it, named in an order drawn from `rng`."""
    objects = [objects[i] for i in rng.permutation(len(objects))]
    colored = task in ("colors", "color_attribution")
    wanted = tuple(Wanted(item.name, color=item.color if colored else None) for item in objects)
    if task == "counting":
        count, name = len(objects), objects[0].name
        places = " and ".join(f"the {item.position}" for item in objects)
        text = f"a picture of {COUNTS[count - 1]} {PLURALS[name]} at {places}"
        return Prompt(task, text, (Wanted(name, count),), (Wanted(name, count + 1),))
    if task == "position":
        a, b = objects
        relation = str(rng.choice(true_relations(a, b)))
        text = f"a picture of a {a.name} {relation} a {b.name} at the {b.position}"
        return Prompt(task, text, (Wanted(b.name), Wanted(a.name, relation=(relation, 0))))
    nouns = [f"a {item.color} {item.name}" if colored else f"a {item.name}" for item in objects]
    places = [f"{noun} at the {item.position}" for noun, item in zip(nouns, objects, strict=True)]
    return Prompt(task, "a picture of " + " and ".join(places), wanted)


def _fits(task: str, objects: Sequence[SceneObject]) -> bool:
    names = {item.name for item in objects}
    if task in ("single_object", "colors"):
        return len(objects) == 1
    if task == "counting":
        return len(names) == 1 and 1 < len(objects) <= MAX_COUNT
    if task == "position":
        return len(objects) == len(names) == 2 and are_neighbors(*objects)
    return len(objects) == len(names) > 1  # in training also of three objects


def _imagined(task: str, rng: np.random.Generator) -> list[SceneObject]:
    """Objects a prompt of this task could be about."""
    count = {"single_object": 1, "colors": 1, "counting": int(rng.integers(2, MAX_COUNT + 1))}.get(task, 2)
    names = rng.choice(CLASSES, count, replace=False)
    colors = rng.choice(list(COLORS), count, replace=False)
    cells = rng.choice(len(POSITIONS), count, replace=False)
    if task == "counting":
        names = names[:1].repeat(count)
    return [SceneObject(str(n), str(c), "large", int(at)) for n, c, at in zip(names, colors, cells, strict=True)]


def are_neighbors(a: SceneObject, b: SceneObject) -> bool:
    return abs(a.cell // 3 - b.cell // 3) + abs(a.cell % 3 - b.cell % 3) == 1


def true_relations(a: SceneObject, b: SceneObject) -> list[str]:
    """How a lies to b: one relation in a shared row or column, else two."""
    (row_a, column_a), (row_b, column_b) = divmod(a.cell, 3), divmod(b.cell, 3)
    across = ["left of"] if column_a < column_b else ["right of"] if column_a > column_b else []
    return across + (["above"] if row_a < row_b else ["below"] if row_a > row_b else [])


# --------------------------------------------------------------------------- reading

_PLACE = rf"the ({'|'.join(sorted(POSITIONS, key=len, reverse=True))})"
_NOUN = rf"(?:{'|'.join(('a', *COUNTS))}) (?:({'|'.join(COLORS)}) )?({'|'.join(SINGULARS)})"
_PLACED = re.compile(rf"{_NOUN} at ({_PLACE}(?: and {_PLACE})*)")
_BESIDE = re.compile(rf"{_NOUN} ({'|'.join(RELATIONS)}) (?={_NOUN} at {_PLACE})")
_STEPS = dict(zip(RELATIONS, [(0, -1), (0, 1), (-1, 0), (1, 0)], strict=True))  # down, right


def stated_objects(text: str) -> dict[int, ObjectFact]:
    """Cell -> the object that a prompt or a caption puts there; what is left of another stands beside it."""
    if not text.startswith("a picture of ") or "object" in text:
        return {POSITIONS.index(item.position): item for item in parse_caption(text).objects if item.position}
    stated = {
        POSITIONS.index(place): ObjectFact(SINGULARS[found[2]], found[1], None, place)
        for found in _PLACED.finditer(text)
        for place in re.findall(_PLACE, found[3])
    }
    for found in _BESIDE.finditer(text):
        (down, right), other = _STEPS[found[3]], POSITIONS.index(found[6])
        row, column = other // 3 + down, other % 3 + right
        if row in range(3) and column in range(3):
            stated[3 * row + column] = ObjectFact(SINGULARS[found[2]], found[1], None, POSITIONS[3 * row + column])
    return stated
