from dataclasses import replace

import numpy as np
import pytest

from uae_lightning.scenes.faults import FAULTS, faulty_scenes, with_fault
from uae_lightning.scenes.scene import Scene, SceneObject

CAT = SceneObject("cat", "red", "large", 0)
BUS = SceneObject("bus", "blue", "small", 4)
SCENE = Scene("grass", (CAT, BUS))


@pytest.mark.parametrize(
    ("kind", "count", "example"),
    [
        ("class", 46, Scene("grass", (replace(CAT, name="car"), BUS))),
        ("color", 14, Scene("grass", (CAT, replace(BUS, color="white")))),
        ("size", 2, Scene("grass", (replace(CAT, size="small"), BUS))),
        ("moved", 14, Scene("grass", (BUS, replace(CAT, cell=8)))),
        ("swapped", 1, Scene("grass", (replace(BUS, cell=0), replace(CAT, cell=4)))),
        ("colors_swapped", 1, Scene("grass", (replace(CAT, color="blue"), replace(BUS, color="red")))),
        ("dropped", 2, Scene("grass", (BUS,))),
        ("doubled", 14, Scene("grass", (CAT, replace(CAT, cell=3), BUS))),
        ("background", 9, Scene("night", (CAT, BUS))),
    ],
)
def test_all_scenes_with_one_fault_and_no_other(kind, count, example):
    # red if `not in gone` becomes `in gone`, if the objects are not sorted, or `!=` of LOOKS goes
    found = faulty_scenes(SCENE, kind)
    assert example in found and SCENE not in found
    assert len(found) == len(set(found)) == count
    for scene in found:
        cells = [item.cell for item in scene.objects]
        assert cells == sorted(set(cells))


@pytest.mark.parametrize(
    ("kind", "scene"),
    [
        ("dropped", Scene("grass", (CAT,))),
        ("swapped", Scene("grass", (CAT, replace(CAT, cell=1)))),
        ("colors_swapped", Scene("grass", (CAT, replace(BUS, color="red")))),
        ("colors_swapped", Scene("grass", (CAT, replace(CAT, color="blue", cell=1)))),  # they would swap places
        ("doubled", Scene("grass", tuple(replace(CAT, cell=cell) for cell in range(4)))),
    ],
)
def test_what_a_scene_cannot_have(kind, scene):
    # red if `> 1` becomes `> 0`, `full` becomes False, or one of the two conditions on pairs goes
    assert faulty_scenes(scene, kind) == []
    with pytest.raises(ValueError, match=kind):
        with_fault(scene, kind, np.random.default_rng(0))


def test_the_generator_chooses():
    # red if `options[0]` is returned
    for kind in FAULTS:
        drawn = {with_fault(SCENE, kind, np.random.default_rng(seed)) for seed in range(8)}
        assert drawn <= set(faulty_scenes(SCENE, kind))
        assert len(drawn) > 1 or len(faulty_scenes(SCENE, kind)) == 1
    with pytest.raises(ValueError, match="kind must be one of"):
        faulty_scenes(SCENE, "upside_down")
