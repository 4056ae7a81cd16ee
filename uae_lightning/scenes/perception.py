"""Perception: which facts of a scene its caption states, and which of the facts it states are true.

Every figure has items that depend on the scenes alone, so that two encoders can be compared item by item. Hence a fact
of an object that a caption does not name counts as missed, and precision is kept as two counts per scene, "stated/KIND"
and "false/KIND"; their ratio is taken over all scenes, since that of a caption that states nothing does not exist.
"""

from __future__ import annotations

from collections import defaultdict

import lightning as L

from uae_lightning.evaluation.statistics import Figures, Items, Statistic
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.scenes.captions import Facts, match_objects, parse_caption
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import Scene, SceneObject

OF_AN_OBJECT = ("class", "color", "size", "position")
STATED = (*OF_AN_OBJECT, "background", "count", "relation")


class Perception(Suite):
    """Facts that the captions of the round trip get right and wrong: see `perception`."""

    about = "facts that captions get right and wrong"
    lower_is_better = ("hallucination", "false/")
    neither = ("stated/", "facts_per_caption")

    def missing(self, data: L.LightningDataModule) -> str | None:
        return without_scenes(data)

    def measure(self, subject: Subject) -> Items:
        trip = subject.round_trip
        return perception(trip.captions.texts, [subject.data.scene(key) for key in trip.keys])

    def statistics(self, items: Items) -> dict[str, Statistic]:
        """The precision of a kind of which no caption states any is left out (n counts scenes)."""
        precision = {
            f"precision/{kind}": Statistic((f"stated/{kind}", f"false/{kind}"), "remainder")
            for kind in STATED if any(items[f"stated/{kind}"])
        }  # fmt: skip
        return super().statistics(items) | precision

    def instrument(self, name: str) -> str:
        return "parser"

    def groups(self, figures: Figures) -> list[Group]:
        rows = [Row(kind, kind) for kind in ("overall", *OF_AN_OBJECT, "count", "background")]
        rows += [Row("small_objects", "small objects"), Row("hallucination", "objects that are not there")]
        return [Group("Seeing", "share of the facts of a picture that its caption gets right", tuple(rows))]


def without_scenes(data: L.LightningDataModule) -> str | None:
    return None if isinstance(data, ScenesData) else "the data has no scene graphs, as ScenesData has"


def perception(captions: list[str], scenes: list[Scene]) -> Items:
    """Captions against the graphs of their scenes: name -> a value for each item, in the order of the scenes.

    An item is an object in
        class, color, size, position: 1 where the caption states this of the object, else 0. Objects of a caption and of
            a scene are matched one to one within their class (`match_objects`): one of the wrong class misses all four.
        small_objects, large_objects: share of these four, of objects of this size.
        small_class, large_class: 1 where an object of this size is named at all.
    and a scene in
        background: 1 where it is named (the last one, if several are).
        count: 1 where the number of objects is right: the stated one ("two objects") if there is one, however many are
            listed, else the number of objects listed.
        overall: share of all facts that are right: background, count, and four of each object.
        hallucination: share of the objects listed that the scene does not have; 0 if none is listed.
        stated/KIND, false/KIND: number of facts of a kind that the caption states, and of those that are not true. A
            fact of an object that the scene does not have is false; counts are those stated, not those listed.
        facts_per_caption: number of all facts stated, true or false.
    """
    values = defaultdict(list)
    for caption, scene in zip(captions, scenes, strict=True):
        facts = parse_caption(caption)
        for name, items in (_recalled(facts, scene) | _stated(facts, scene)).items():
            values[name] += items
    return dict(values)


def _recalled(facts: Facts, scene: Scene) -> dict[str, list[float]]:
    objects = match_objects(facts, scene)
    background = float(facts.background == scene.background)
    told = len(facts.objects) if facts.count is None else facts.count
    count = float(told == len(scene.objects))
    right = sum(sum(agreement.values()) for _, agreement in objects)
    values = {kind: [float(agreement[kind]) for _, agreement in objects] for kind in OF_AN_OBJECT}
    for size in ("small", "large"):
        of_size = [agreement for item, agreement in objects if item.size == size]
        values[f"{size}_objects"] = [sum(agreement.values()) / len(OF_AN_OBJECT) for agreement in of_size]
        values[f"{size}_class"] = [float(agreement["class"]) for agreement in of_size]
    overall = (background + count + right) / (2 + len(OF_AN_OBJECT) * len(objects))
    return values | {"background": [background], "count": [count], "overall": [overall]}


def _stated(facts: Facts, scene: Scene) -> dict[str, list[float]]:
    fields = {"class": "name", "color": "color", "size": "size", "position": "position"}
    stated = {kind: sum(getattr(fact, fields[kind]) is not None for fact in facts.objects) for kind in OF_AN_OBJECT}
    stated |= {"background": facts.background is not None, "count": facts.count is not None}
    stated |= {"relation": len(facts.relations)}

    objects = match_objects(facts, scene)
    true = {kind: sum(agreement[kind] for _, agreement in objects) for kind in OF_AN_OBJECT}
    true |= {"background": facts.background == scene.background, "count": facts.count == len(scene.objects)}
    true |= {"relation": sum(_holds(relation, scene) for relation in facts.relations)}

    listed = len(facts.objects)
    values = {"hallucination": [(listed - true["class"]) / max(listed, 1)]}
    values |= {f"stated/{kind}": [float(stated[kind])] for kind in STATED}
    values |= {f"false/{kind}": [float(stated[kind] - true[kind])] for kind in STATED}
    return values | {"facts_per_caption": [float(sum(stated.values()))]}


def _holds(relation: tuple[str, str, str], scene: Scene) -> bool:
    subject, word, other = relation
    pairs = [(a, b) for a in scene.objects for b in scene.objects if (a.name, b.name) == (subject, other)]
    return any(word in relations_between(a, b) for a, b in pairs if a is not b)


def relations_between(a: SceneObject, b: SceneObject) -> set[str]:
    """Every relation of a to b that a caption may state: one in a shared row or column, else two."""
    (row_a, column_a), (row_b, column_b) = divmod(a.cell, 3), divmod(b.cell, 3)
    across = {"left of"} if column_a < column_b else {"right of"} if column_a > column_b else set()
    return across | ({"above"} if row_a < row_b else {"below"} if row_a > row_b else set())
