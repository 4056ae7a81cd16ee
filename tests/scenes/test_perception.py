import re

import numpy as np
import pytest

from uae_lightning.scenes.captions import match_objects, parse_caption, write_caption
from uae_lightning.scenes.perception import OF_AN_OBJECT, STATED, Perception, perception
from uae_lightning.scenes.scene import Scene, SceneObject, sample_scene

CAT = SceneObject("cat", "red", "large", 0)
BUS = SceneObject("bus", "blue", "small", 4)
CUP = SceneObject("cup", "green", "large", 8)
SCENE = Scene("sand", (CAT, BUS, CUP))
CAPTIONS = [write_caption(SCENE, np.random.default_rng(seed)) for seed in range(30)]  # in all three styles

LARGE = {"large_objects", "overall"}
FACTS = set(OF_AN_OBJECT)


def exchanged(caption: str, a: str, b: str) -> str:
    """Both ways, in one go."""
    return re.sub(rf"\b({a}|{b})\b", lambda found: b if found[0] == a else a, caption)


def without_the_cat(caption: str) -> str:
    kept = [sentence for sentence in caption.split(" . ") if "cat" not in sentence]
    return " . ".join(kept).replace("three objects", "two objects")


FAULTS = {
    "swap two positions": (
        lambda text: exchanged(text, "top left", "bottom right"),
        LARGE | {"position", "false/position"},
    ),
    "swap two colors": (
        lambda text: exchanged(text, "red", "blue"),
        LARGE | {"small_objects", "color", "false/color"},
    ),
    "recolor": (lambda text: text.replace("red cat", "pink cat"), LARGE | {"color", "false/color"}),
    "resize": (lambda text: text.replace("large red", "small red"), LARGE | {"size", "false/size"}),
    "rename": (
        lambda text: text.replace("cat", "boat"),
        LARGE | FACTS | {"large_class", "hallucination", "false/relation"} | {f"false/{kind}" for kind in FACTS},
    ),
    "drop an object": (
        without_the_cat,
        LARGE | FACTS | {"large_class", "count", "false/count", "facts_per_caption", "stated/relation"}
        | {f"stated/{kind}" for kind in FACTS},
    ),
    "invent an object": (
        lambda text: text + " we see a small pink boat at the top right .",
        {"hallucination", "facts_per_caption"}
        | {f"{what}/{kind}" for what in ("stated", "false") for kind in FACTS},
    ),
    "miscount": (lambda text: text.replace("three", "two"), {"count", "overall", "false/count"}),
    "leave out the count": (
        lambda text: re.sub("three objects", "a scene", text),
        {"stated/count", "facts_per_caption"},  # the objects listed are three
    ),
    "another background": (lambda text: text.replace("sand", "sea"), {"background", "overall", "false/background"}),
    "turn a relation": (lambda text: exchanged(text, "left of", "right of"), {"false/relation"}),
    "other words": (lambda text: "well , " + text.upper().replace("LARGE", "very LARGE"), set()),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_moves_its_figures_and_no_other(fault: str):
    # Red if item.size == size becomes !=, or `if facts.count is None` becomes `if facts.count`.
    plant, expected = FAULTS[fault]
    clean, faulty = perception(CAPTIONS, [SCENE] * 30), perception([plant(text) for text in CAPTIONS], [SCENE] * 30)
    assert {name for name in clean if clean[name] != faulty[name]} == expected


def test_a_complete_caption_has_every_fact_right_and_no_false_one():
    # Red if 2 + len(OF_AN_OBJECT) becomes 1 + ..., or true["class"] is taken twice.
    scenes = [sample_scene("validation", 0, i, max_objects=4) for i in range(200)]
    values = perception([write_caption(s, np.random.default_rng(i)) for i, s in enumerate(scenes)], scenes)
    for name, items in values.items():
        if not name.startswith("stated/") and name != "facts_per_caption":
            wrong = name.startswith("false/") or name == "hallucination"
            assert set(items) == {0.0 if wrong else 1.0}, name
    objects = sum(len(scene.objects) for scene in scenes)
    assert len(values["class"]) == len(values["small_class"]) + len(values["large_class"]) == objects
    assert sum(values["stated/color"]) == objects and len(values["overall"]) == 200


def test_the_items_do_not_depend_on_the_captions():
    # Red if "hallucination" or "false/..." is kept of captions alone that list an object.
    scenes = [sample_scene("validation", 0, i) for i in range(40)]
    complete = perception([write_caption(s, np.random.default_rng(0)) for s in scenes], scenes)
    for text in ("", "gibberish", "red cat red cat , boat , boat , boat"):
        values = perception([text] * 40, scenes)
        assert {name: len(items) for name, items in values.items()} == {k: len(v) for k, v in complete.items()}
        assert np.mean(values["overall"]) < 0.1


def test_size_of_a_drop_is_known():
    # Red if an object of the wrong class is matched, or len(OF_AN_OBJECT) becomes 3.
    values = perception(["large red cat top left , small blue bus center , large green cup bottom left"], [SCENE])
    assert values["position"] == [1, 1, 0] and values["class"] == values["color"] == values["size"] == [1, 1, 1]
    assert values["large_objects"] == [1, 0.75] and values["small_objects"] == [1]
    assert values["background"] == [0] and values["count"] == [1]  # three are listed
    assert values["overall"] == [12 / 14]
    terse = perception(["red cat , red cat , boat"], [SCENE])
    assert terse["hallucination"] == [2 / 3] and terse["false/color"] == [1] and terse["facts_per_caption"] == [5]


def test_precision_is_that_of_all_facts_stated():
    # Red if true and stated change places, or captions that state nothing count as right.
    summary = Perception().figures(perception(["red cat", "", "pink cat , pink cat , red cat"], [SCENE] * 3))
    assert summary["precision/color"]["mean"] == 2 / 4 and summary["precision/color"]["n"] == 3
    assert summary["precision/class"]["mean"] == 2 / 4
    assert summary["precision/color"]["low"] < 2 / 4 < summary["precision/color"]["high"]
    assert "precision/size" not in summary and "precision/background" not in summary
    assert summary["color"]["mean"] == 2 / 9 and summary["color"]["n"] == 9
    kinds = {f"precision/{kind}" for kind in STATED}
    assert not {name for name in summary if "/" in name} - kinds


def test_figures_of_one_item_are_left_out():
    # Red if > 1 becomes >= 1.
    summary = Perception().figures(perception(["red cat", ""], [Scene("sand", (CAT,)), Scene("sand", (BUS,))]))
    assert "class" in summary and "small_objects" not in summary


def test_objects_are_matched_by_the_best_pair_whatever_the_order():
    # Red if the minus of -sum goes, or a stated object may be matched twice.
    a, b = SceneObject("cat", "red", "large", 0), SceneObject("cat", "red", "large", 8)
    scene = Scene("sand", (a, b))
    (_, first), (_, second) = match_objects(parse_caption("red cat bottom right , cat"), scene)
    assert second == {"class": 1, "color": 1, "size": 0, "position": 1}
    assert first == {"class": 1, "color": 0, "size": 0, "position": 0}
    (_, first), (_, second) = match_objects(parse_caption("large red cat"), scene)
    assert sum(first.values()) == 3 and sum(second.values()) == 0


def test_a_relation_is_held_against_the_scene():
    # Red if (subject, other) becomes (other, subject).
    text = "the red cat is {} the blue bus"
    relations = ("left of", "above", "right of", "below")
    assert [perception([text.format(r)], [SCENE])["false/relation"] for r in relations] == [[0], [0], [1], [1]]
    assert perception([text.format("above")], [SCENE])["stated/class"] == [0]


def test_every_caption_needs_its_scene():
    # Red if strict=True goes.
    with pytest.raises(ValueError):
        perception(["red cat"], [SCENE, SCENE])
