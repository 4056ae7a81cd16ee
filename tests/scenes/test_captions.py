import numpy as np
import pytest

from uae_lightning.scenes.captions import (
    LEVELS,
    ObjectFact,
    matched_facts,
    parse_caption,
    vocabulary,
    write_caption,
)
from uae_lightning.scenes.scene import POSITIONS, Scene, SceneObject, sample_scene

RED_CAT = SceneObject("cat", "red", "large", 0)
BLUE_BUS = SceneObject("bus", "blue", "small", 4)
SCENE = Scene("sand", (RED_CAT, BLUE_BUS))


@pytest.mark.parametrize("seed", range(3))
def test_complete_captions_are_read_back_exactly(seed: int):
    # red if the writer drops any fact at detail 1, or the parser misreads one
    for index in range(400):
        scene = sample_scene("train", seed, index, max_objects=4)
        facts = parse_caption(write_caption(scene, np.random.default_rng(index)))
        in_order = sorted(facts.objects, key=lambda fact: POSITIONS.index(fact.position))
        assert in_order == [ObjectFact(item.name, item.color, item.size, item.position) for item in scene.objects]
        assert facts.background == scene.background
        assert facts.count == len(scene.objects)
        for subject, relation, other in facts.relations:
            _assert_true(scene, subject, relation, other)


def _assert_true(scene: Scene, subject: str, relation: str, other: str) -> None:
    row_or_col = (lambda cell: cell % 3) if relation in ("left of", "right of") else (lambda cell: cell // 3)
    sign = 1 if relation in ("left of", "above") else -1
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a.name == subject and b.name == other]
    assert any(sign * (row_or_col(b.cell) - row_or_col(a.cell)) > 0 for a, b in pairs)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_says_only_what_is_true_in_known_words(level: str):
    # red if a dropped size or colour is replaced by another one
    known = set(vocabulary())
    for index in range(300):
        scene, rng = sample_scene("train", 0, index, max_objects=4), np.random.default_rng(index)
        caption = write_caption(scene, rng, level=level, detail=0.5)
        assert set(caption.split()) <= known
        facts = parse_caption(caption)
        assert facts.background in (None, scene.background)
        for fact in facts.objects:
            assert any(
                fact.name == item.name
                and fact.color in (None, item.color)
                and fact.size in (None, item.size)
                and fact.position in (None, item.position)
                for item in scene.objects
            )


def test_levels_differ_in_length():
    # red if "tag" names more than one object
    words = {level: np.mean([len(_caption(i, level).split()) for i in range(100)]) for level in LEVELS}
    assert words["tag"] == 2 < words["short"] < words["long"]


def _caption(index: int, level: str) -> str:
    return write_caption(sample_scene("train", 0, index), np.random.default_rng(index), level=level)


def test_groups_of_equal_objects_are_read_one_by_one():
    facts = parse_caption("we see two small blue chairs at the top left and the center .")
    assert facts.objects == (
        ObjectFact("chair", "blue", "small", "top left"),
        ObjectFact("chair", "blue", "small", "center"),
    )


def test_matched_facts_count_what_is_right():
    # red if an object of the wrong class is matched
    assert matched_facts(parse_caption("large red cat top left , green bus center , sand"), SCENE) == {
        "background": 1, "class": 2, "color": 1, "size": 1, "position": 2,
    }  # fmt: skip
    assert matched_facts(parse_caption("a red dog"), SCENE)["class"] == 0


@pytest.mark.parametrize("text", ["", " . , .", "colourless green ideas sleep furiously", "at at at the the"])
def test_gibberish_is_read_without_facts(text: str):
    facts = parse_caption(text)
    assert facts.objects == () and facts.background is None
