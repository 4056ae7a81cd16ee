from dataclasses import replace

import numpy as np
import pytest

from uae_lightning.scenes.scene import Scene, SceneObject, sample_scene
from uae_lightning.scenes.web_captions import Noise, misremembered, misstated

SILENT = Noise(**dict.fromkeys(Noise.__dataclass_fields__, 0.0))
RED_CAT, BLUE_BUS = SceneObject("cat", "red", "large", 0), SceneObject("bus", "blue", "small", 4)
TWO = Scene("sand", (RED_CAT, BLUE_BUS))
CATS = Scene("sand", (RED_CAT, replace(RED_CAT, cell=4)))


def believed(scene: Scene, **noise: float) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [misremembered(scene, rng, replace(SILENT, **noise)) for _ in range(200)]


def test_without_noise_all_is_true():
    # red if a rate is compared with <=
    for index in range(50):
        scene = sample_scene("train", 0, index)
        assert misremembered(scene, np.random.default_rng(index), SILENT) == scene


@pytest.mark.parametrize(
    ("kind", "field"), [("name", "name"), ("color", "color"), ("size", "size"), ("moved", "cell")]
)  # fmt: skip
def test_each_kind_changes_its_own_fact_at_its_rate(kind: str, field: str):
    # red if two kinds change places in `_look`, or `_other` may return the truth
    changed = 0
    for scene in believed(TWO, **{kind: 0.3}):
        found = {item.name if field != "name" else item.color: item for item in scene.objects}
        for item in TWO.objects:
            seen = found[item.name if field != "name" else item.color]
            changed += getattr(seen, field) != getattr(item, field)
            assert replace(seen, **{field: getattr(item, field)}) == item
    assert changed / 400 == pytest.approx(0.3, abs=0.08)


def test_equal_objects_are_mistaken_together():
    # red if looks are drawn for each object
    assert all(len({item.name for item in scene.objects}) == 1 for scene in believed(CATS, name=0.5))


def test_colors_change_places():
    # red if only one of the two gets the other's color
    swapped = Scene("sand", (replace(RED_CAT, color="blue"), replace(BLUE_BUS, color="red")))
    assert {*believed(TWO, swapped=0.5)} == {TWO, swapped}
    assert {*believed(CATS, swapped=1.0)} == {CATS}


def test_equal_objects_are_miscounted_and_others_dropped_or_added():
    # red if `fewer, more` do not ask `equal`, or an added equal object is of another look
    numbers = [len(scene.objects) for scene in believed(CATS, miscounted=0.5)]
    assert numbers.count(1) / 200 == pytest.approx(0.25, abs=0.08) and set(numbers) == {1, 2, 3}
    assert all(len({(o.name, o.color, o.size) for o in s.objects}) == 1 for s in believed(CATS, miscounted=1.0))
    assert {len(scene.objects) for scene in believed(CATS, dropped=1.0)} == {2}
    assert {len(scene.objects) for scene in believed(TWO, dropped=1.0)} == {1}
    assert {len(scene.objects) for scene in believed(TWO, added=1.0)} == {3}


def test_cells_stay_apart_and_in_order():
    # red if a moved object may go where another has gone, or objects are not sorted
    for scene in believed(Scene("sand", (RED_CAT, BLUE_BUS, replace(RED_CAT, cell=8))), moved=0.8, added=0.5):
        cells = [item.cell for item in scene.objects]
        assert cells == sorted(set(cells))


def test_relations_are_turned_round():
    # red if OPPOSITES pairs left with above, or every relation is turned
    rng = np.random.default_rng(0)
    texts = [misstated("the cat is left of the bus . the bus is above the car .", rng, Noise(relation=0.5))
             for _ in range(100)]  # fmt: skip
    assert set(texts) == {
        f"the cat is {a} of the bus . the bus is {b} the car ." for a in ("left", "right") for b in ("above", "below")
    }
    assert misstated("top left , right", rng, Noise(relation=1.0)) == "top left , right"
