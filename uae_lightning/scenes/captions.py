"""Captions of scenes: written from the graph at several levels of detail, and read back into facts.

Levels, from terse to complete (`detail` is the probability with which each optional fact is kept):

    tag     "red cat"
    short   "large red cat top left , small car center , sand"            telegraphic, facts dropped by `detail`
    long    "the background is sand . there are two objects . at the top left there is a large red cat . ..."
            three styles of full sentences; with detail 1 they name background, count, every object with colour, size
            and position, and how neighbours lie to each other

All words are lower case and separated by blanks, full stops and commas included, so that a word-level tokenizer loses
nothing. The parser knows no styles: it splits at stops and commas and looks for words, so that it also reads what a
policy makes up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from uae_lightning.evaluation.geneval import RELATIONS
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, POSITIONS, SIZES, Scene, SceneObject

LEVELS = ("tag", "short", "long")
COUNTS = ("one", "two", "three", "four")
PLURALS = {name: {"bus": "buses", "scissors": "scissors"}.get(name, name + "s") for name in CLASSES}
SINGULARS = {plural: name for name, plural in PLURALS.items()} | {name: name for name in CLASSES}


@dataclass(frozen=True)
class ObjectFact:
    """What a caption says of one object; None where it does not say."""

    name: str
    color: str | None = None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Facts:
    background: str | None
    objects: tuple[ObjectFact, ...]
    count: int | None  # as stated by "there are two objects"
    relations: tuple[tuple[str, str, str], ...]  # (subject class, relation, object class)
    unread: int  # clauses in which nothing was recognised


# --------------------------------------------------------------------------- writing


def write_caption(scene: Scene, rng: np.random.Generator, *, level: str = "long", detail: float = 1.0) -> str:
    """One caption of `scene`; the style is drawn from `rng`. Words, blanks between all of them."""
    if level == "tag":
        item = scene.objects[rng.integers(len(scene.objects))]
        return f"{item.color} {item.name}"
    if level == "short":
        return _short(scene, rng, detail)
    if level == "long":
        return _long(scene, rng, detail)
    raise ValueError(f"level must be one of {LEVELS}, got {level!r}")


def _short(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    clauses = [
        " ".join(filter(None, [_noun(item, 1, rng, detail), item.position if rng.random() < detail else ""]))
        for item in scene.objects
    ]
    if rng.random() < detail:
        clauses.append(scene.background)
    return " , ".join(clauses)


def _long(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    style = rng.integers(3)
    number, noun = len(scene.objects), "object" if len(scene.objects) == 1 else "objects"
    keep_background, keep_count = rng.random(2) < detail
    ground = scene.background
    if style == 0:
        sentences = [f"the background is {ground}"] if keep_background else []
        verb = "is" if number == 1 else "are"
        sentences += [f"there {verb} {COUNTS[number - 1]} {noun}"] if keep_count else []
    elif style == 1:
        subject = f"{COUNTS[number - 1]} {noun}" if keep_count else "a scene"
        sentences = [f"a picture of {subject}" + (f" on {ground}" if keep_background else "")]
    else:
        sentences = [f"this scene shows {COUNTS[number - 1]} {noun}"] if keep_count else []
        sentences += [f"all of it is set on {ground}"] if keep_background else []
    sentences += [_sentence(group, style, rng, detail) for group in _equal_groups(scene)]
    sentences += [
        f"the {_name(a)} is {_relation(a, b)} the {_name(b)}"
        for a, b in zip(scene.objects, scene.objects[1:], strict=False)
        if _name(a) != _name(b) and rng.random() < detail * 0.5
    ]
    return " . ".join(sentences) + " ."


def _sentence(group: list[SceneObject], style: int, rng: np.random.Generator, detail: float) -> str:
    several = len(group) > 1
    article = COUNTS[len(group) - 1] if several else "a"
    noun = f"{article} {_noun(group[0], len(group), rng, detail)}"
    verb = "are" if several else "is"
    if rng.random() >= detail:
        return f"there {verb} {noun}" if style != 2 else f"we see {noun}"
    place = " and ".join(f"the {item.position}" for item in group)
    return (
        f"at {place} there {verb} {noun}",
        f"{noun} {verb} at {place}",
        f"we see {noun} at {place}",
    )[style]


def _noun(item: SceneObject, count: int, rng: np.random.Generator, detail: float) -> str:
    keep_size, keep_color = rng.random() < detail, rng.random() < max(detail, 0.6)
    words = [item.size if keep_size else "", item.color if keep_color else ""]
    return " ".join(filter(None, [*words, PLURALS[item.name] if count > 1 else item.name]))


def _equal_groups(scene: Scene) -> list[list[SceneObject]]:
    groups: dict[tuple[str, str, str], list[SceneObject]] = {}
    for item in scene.objects:
        groups.setdefault((item.name, item.color, item.size), []).append(item)
    return list(groups.values())


def _name(item: SceneObject) -> str:
    return f"{item.color} {item.name}"


def _relation(a: SceneObject, b: SceneObject) -> str:
    if a.cell % 3 != b.cell % 3:
        return "left of" if a.cell % 3 < b.cell % 3 else "right of"
    return "above" if a.cell < b.cell else "below"


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    words = set("the background is there are object objects a picture of scene on at and . , this shows all".split())
    words |= set("it set we see".split()) | {word for phrase in RELATIONS for word in phrase.split()}
    names: list[Iterable[str]] = [BACKGROUNDS, COLORS, SIZES, COUNTS, PLURALS, PLURALS.values(), POSITIONS]
    words |= {word for group in names for phrase in group for word in phrase.split()}
    return sorted(words)


# --------------------------------------------------------------------------- reading

_RELATION = re.compile(
    rf"\b({'|'.join(PLURALS)}) (?:is|are) ({'|'.join(RELATIONS)}) the (?:\w+ )?({'|'.join(PLURALS)})\b"
)
_POSITION = re.compile("|".join(sorted(POSITIONS, key=len, reverse=True)))
_COUNT = re.compile(rf"\b({'|'.join(COUNTS)}) objects?\b")


def parse_caption(caption: str) -> Facts:
    """Facts of any caption, in the order of its clauses; words it does not know are passed over."""
    background, count, unread = None, None, 0
    objects: list[ObjectFact] = []
    relations: list[tuple[str, str, str]] = []
    for clause in filter(None, (part.strip() for part in re.split(r"[.,]", caption.lower()))):
        grounds = [word for word in clause.split() if word in BACKGROUNDS]
        stated = _COUNT.search(clause)
        background = grounds[0] if grounds else background
        count = COUNTS.index(stated[1]) + 1 if stated else count
        if relation := _RELATION.search(clause):
            relations.append((relation[1], relation[2], relation[3]))
            continue
        found = _read_objects(clause)
        objects += found
        unread += not (grounds or stated or found)
    return Facts(background, tuple(objects), count, tuple(relations), unread)


def _read_objects(clause: str) -> list[ObjectFact]:
    words = clause.split()
    name = next((SINGULARS[word] for word in words if word in SINGULARS), None)
    if name is None:
        return []
    color = next((word for word in words if word in COLORS), None)
    size = next((word for word in words if word in SIZES), None)
    positions = _POSITION.findall(clause)
    number = next((COUNTS.index(word) + 1 for word in words if word in COUNTS), 1)
    places = positions or [None] * number
    return [ObjectFact(name, color, size, place) for place in places]


def matched_facts(facts: Facts, scene: Scene) -> Counter[str]:
    """How many facts of each kind (class, color, size, position, background) a caption states that are true of `scene`,
    objects matched as `match_objects` does it."""
    matched: Counter[str] = Counter(background=int(facts.background == scene.background))
    for _, agreement in match_objects(facts, scene):
        matched.update(agreement)
    return matched


def match_objects(facts: Facts, scene: Scene) -> list[tuple[SceneObject, dict[str, int]]]:
    """Every object of the scene, with 1 or 0 for each of its facts (class, color, size, position): stated right or not.

    Objects are matched greedily, each at most once and with its own class only: the stated object that agrees in most
    with one in the scene first. All four facts of an object that is left over count 0.
    """
    nothing = dict.fromkeys(("class", "color", "size", "position"), 0)
    agreements = [nothing] * len(scene.objects)
    pairs = [
        (_agreement(fact, item), stated, row)
        for row, item in enumerate(scene.objects)
        for stated, fact in enumerate(facts.objects)
        if fact.name == item.name
    ]
    used_stated, used_rows = set(), set()
    for agreement, stated, row in sorted(pairs, key=lambda pair: -sum(pair[0].values())):
        if stated not in used_stated and row not in used_rows:
            agreements[row] = agreement
            used_stated.add(stated)
            used_rows.add(row)
    return list(zip(scene.objects, agreements, strict=True))


def _agreement(fact: ObjectFact, item: SceneObject) -> dict[str, int]:
    kinds = {"class": "name", "color": "color", "size": "size", "position": "position"}
    return {kind: int(getattr(fact, field) == getattr(item, field)) for kind, field in kinds.items()}
