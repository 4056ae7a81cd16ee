"""Perception: which facts of a scene its caption states, and which of the facts it states are true.

Every figure has items that depend on the scenes alone, so that two encoders can be compared item by item. Hence a fact
of an object that a caption does not name counts as missed, and precision is kept as two counts per scene, "stated/KIND"
and "false/KIND"; their ratio is taken over all scenes, since that of a caption that states nothing does not exist.
"""

from __future__ import annotations

from collections import defaultdict

from uae_lightning.evaluation.image_health import ratio_interval
from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.scenes.captions import Facts, match_objects, parse_caption
from uae_lightning.scenes.scene import Scene, SceneObject

OF_AN_OBJECT = ("class", "color", "size", "position")
STATED = (*OF_AN_OBJECT, "background", "count", "relation")


def perception(captions: list[str], scenes: list[Scene]) -> dict[str, list[float]]:
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


def summarise_perception(values: dict[str, list[float]]) -> dict[str, dict[str, float | int]]:
    """The interval of each figure, and precision/KIND, the share of true facts among those stated (n counts scenes).

    A figure of fewer than two items, and the precision of a kind of which no caption states any, are left out.
    """
    intervals = {name: mean_interval(x) for name, x in values.items() if "/" not in name and len(x) > 1}
    for kind in STATED:
        stated, false = values[f"stated/{kind}"], values[f"false/{kind}"]
        if any(stated):
            true = [s - f for s, f in zip(stated, false, strict=True)]
            intervals[f"precision/{kind}"] = ratio_interval(true, stated)
    return intervals


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
