"""Captions of the same picture along a run, with the facts they gained marked: **new and true**, ~~untrue~~."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

from uae_lightning.report.captions import CaptionMarker, plain
from uae_lightning.scenes.captions import COUNTS, PLURALS, ObjectFact, parse_caption
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.prompts import true_relations
from uae_lightning.scenes.scene import BACKGROUNDS, COLORS, POSITIONS, SIZES, Scene, SceneObject

NAMES = frozenset(PLURALS) | frozenset(PLURALS.values())
_POSITION = re.compile("|".join(sorted(POSITIONS, key=len, reverse=True)))
_COUNT = re.compile(rf"\b(?:{'|'.join(COUNTS)}) objects?\b")

Span = tuple[int, int, frozenset[Hashable]]  # first and one past the last character of a fact; what it says truly
Said = tuple[ObjectFact, int | None]  # an object as stated, and the number of the object in the scene that it is


class SceneCaptions(CaptionMarker):
    """Facts of scenes: bold where they are true and new, struck where they are not true."""

    legend = "Bold: a true fact that the caption before did not state. Struck: not true of the picture."

    def mark(self, captions: Sequence[str], key: str, data: dict[str, Any]) -> list[str]:
        return marked_captions(captions, ScenesData(max_objects=data["init_args"]["max_objects"]).scene(key))


def marked_captions(captions: Sequence[str], scene: Scene) -> list[str]:
    """Captions of one scene, in the order of the run, as Markdown; a fact is new where the caption before lacks it."""
    lines, known = [], None  # the first caption gains nothing
    for caption in captions:
        spans = sorted(fact_spans(caption, scene), key=lambda span: span[:2])
        lines.append(marked(caption, spans, known))
        known = {fact for _, _, true in spans for fact in true}
    return lines


def marked(caption: str, spans: list[Span], known: Collection[Hashable] | None) -> str:
    """Bold where a span says something true that is not `known`, struck where it says nothing true."""
    text, end = "", 0
    for start, stop, true in spans:
        sign = "~~" if not true else "**" if known is not None and not true <= set(known) else ""
        text += plain(caption[end:start]) + sign + plain(caption[start:stop]) + sign
        end = stop
    return (text + plain(caption[end:])).replace("** **", " ").replace("~~ ~~", " ")  # neighbours share a mark


# ------------------------------------------------------------------------------------------------ where facts stand


def fact_spans(caption: str, scene: Scene) -> list[Span]:
    """Every word or phrase of a caption that states a fact, and what of it is true of the scene."""
    clauses = [(match.start(), match[0].lower()) for match in re.finditer(r"[^.,]+", caption)]
    stated = [parse_caption(clause).objects for _, clause in clauses]  # none in a clause that is a relation
    items = iter(matched([fact for facts in stated for fact in facts], scene))
    spans = []
    for (offset, clause), facts in zip(clauses, stated, strict=True):
        said = [(fact, next(items)) for fact in facts]
        found = [*relation_span(clause, scene)] or [*scene_spans(clause, scene), *object_spans(clause, said, scene)]
        spans += [(offset + start, offset + stop, true) for start, stop, true in found]
    return spans


def matched(stated: list[ObjectFact], scene: Scene) -> list[int | None]:
    """Which object of the scene each stated one is, matched as in `data.captions.match_objects`; None is made up."""
    items: list[int | None] = [None] * len(stated)
    pairs = [
        (i, number)
        for number, item in enumerate(scene.objects)
        for i, fact in enumerate(stated)
        if fact.name == item.name
    ]
    for i, number in sorted(pairs, key=lambda pair: -agreement(stated[pair[0]], scene.objects[pair[1]])):
        if items[i] is None and number not in items:
            items[i] = number
    return items


def agreement(fact: ObjectFact, item: SceneObject) -> int:
    return sum(getattr(fact, field) == getattr(item, field) for field in ("color", "size", "position"))


def relation_span(clause: str, scene: Scene) -> Iterator[Span]:
    """The whole of a clause such as "the red car is left of the bus"."""
    for a, relation, b in parse_caption(clause).relations:
        pairs = [(x, y) for x in scene.objects for y in scene.objects if (x.name, y.name) == (a, b) and x is not y]
        holds = any(relation in true_relations(x, y) for x, y in pairs)
        start = len(clause) - len(clause.lstrip())
        yield start, len(clause.rstrip()), frozenset({(a, relation, b)} if holds else ())


def scene_spans(clause: str, scene: Scene) -> Iterator[Span]:
    """Background, and the number of objects."""
    for word in words(clause, BACKGROUNDS):
        yield *word.span(), frozenset({"background"} if word[0] == scene.background else ())
    if count := _COUNT.search(clause):
        yield *count.span(), frozenset({"count"} if parse_caption(clause).count == len(scene.objects) else ())


def object_spans(clause: str, said: list[Said], scene: Scene) -> Iterator[Span]:
    """Class, colour and size, which a clause states once for all its objects, then their positions one by one."""
    if not said:
        return
    for field, known in (("name", NAMES), ("color", COLORS), ("size", SIZES)):
        for word in words(clause, known)[:1]:
            yield *word.span(), true_of(said, field, scene)
    for place, one in zip(_POSITION.finditer(clause), said, strict=False):
        yield *place.span(), true_of([one], "position", scene)


def true_of(said: list[Said], field: str, scene: Scene) -> frozenset[Hashable]:
    return frozenset(
        (field, item)
        for fact, item in said
        if item is not None and getattr(fact, field) == getattr(scene.objects[item], field)
    )


def words(clause: str, known: Collection[str]) -> list[re.Match[str]]:
    return [match for match in re.finditer(r"\S+", clause) if match[0] in known]
