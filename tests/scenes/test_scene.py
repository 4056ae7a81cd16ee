import numpy as np
import pytest

from uae_lightning.scenes.scene import SPLITS, Scene, SceneObject, render, sample_scene, split_of


def test_a_scene_is_a_function_of_split_seed_and_index():
    # red if the generator is keyed without `index`: all scenes are then the same
    first = [sample_scene("train", 3, i) for i in range(50)]
    assert first == [sample_scene("train", 3, i) for i in range(50)]
    assert len(set(first)) > 45
    assert first != [sample_scene("train", 4, i) for i in range(50)]


def test_splits_never_share_a_scene():
    # red if `_draw` is returned without asking `split_of`
    for split in SPLITS:
        assert all(split_of(sample_scene(split, 0, i)) == split for i in range(100))


def test_max_objects_is_a_limit_and_is_reached():
    # red if the count is drawn from max_objects + 1
    counts = {len(sample_scene("train", 0, i, max_objects=2).objects) for i in range(100)}
    assert counts == {1, 2}


def test_objects_are_in_raster_order_in_cells_of_their_own():
    # red if cells are drawn with replacement, or not sorted
    for i in range(200):
        cells = [item.cell for item in sample_scene("train", 0, i, max_objects=4).objects]
        assert cells == sorted(set(cells))


def test_every_fact_changes_the_picture():
    # red if `_glyph` forgets one of its three arguments
    base = SceneObject("cat", "red", "large", 4)
    picture = render(Scene("sand", (base,))).astype(int)
    others = [
        Scene("sea", (base,)),
        Scene("sand", (SceneObject("bus", "red", "large", 4),)),
        Scene("sand", (SceneObject("cat", "blue", "large", 4),)),
        Scene("sand", (SceneObject("cat", "red", "small", 4),)),
        Scene("sand", (SceneObject("cat", "red", "large", 5),)),
    ]
    assert picture.shape == (64, 64, 3)
    assert all(np.abs(render(other) - picture).mean() > 0.5 for other in others)


@pytest.mark.parametrize(("split", "objects", "named"), [("training", 3, "split"), ("train", 5, "max_objects")])
def test_wrong_arguments_are_named(split: str, objects: int, named: str):
    with pytest.raises(ValueError, match=named):
        sample_scene(split, 0, 0, max_objects=objects)
