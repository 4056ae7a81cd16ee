import json

import numpy as np
import pytest
from PIL import Image

from uae_lightning.scenes import scene as world
from uae_lightning.scenes.scene import (
    IMAGE_SIZE,
    SPLITS,
    Scene,
    SceneObject,
    render,
    render_scenes,
    sample_scene,
    split_of,
)


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
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert all(np.abs(render(other) - picture).mean() > 0.5 for other in others)


def test_an_object_is_its_glyph_laid_over_the_background_in_the_middle_of_its_cell():
    # red if CELL_CENTERS, the margin of a sprite, or `1 - alpha` is off, or down and across change places
    item = SceneObject("train", "green", "small", 5)
    glyph = world._glyph("train", "green", "small")
    rgba = np.concatenate([glyph[..., :3], 255 * glyph[..., 3:]], -1).clip(0, 255).round().astype(np.uint8)
    wanted = Image.fromarray(render(Scene("wood", ())))
    wanted.paste(Image.fromarray(rgba), (80 - 9, 48 - 9), Image.fromarray(rgba))
    assert np.abs(render(Scene("wood", (item,))).astype(int) - np.asarray(wanted)).max() <= 2


def test_pictures_put_together_in_one_go_are_those_drawn_one_by_one():
    # red if backgrounds are not copied, or `rows` does not say which picture an object belongs to
    scenes = [*(sample_scene("train", 1, i, max_objects=4) for i in range(20)), Scene("sea", ())]
    assert np.array_equal(render_scenes(scenes), np.stack([render(scene) for scene in scenes]))
    assert np.array_equal(render_scenes(scenes[-1:])[0], render(scenes[-1]))


def test_another_art_style_from_a_folder(tmp_path):
    # red if `glyphs` is not passed on, or the sprites of one folder are taken for those of another
    Image.new("RGBA", (128, 128), (200, 200, 200, 255)).save(tmp_path / "square.webp", lossless=True)
    names = {name: {"files": ["square.webp"]} for name in world.CLASSES}
    (tmp_path / "glyphs.json").write_text(json.dumps({"classes": names}))
    scene = Scene("sand", (SceneObject("cat", "red", "small", 4),))
    squares = render_scenes([scene], tmp_path)[0]
    assert len(np.unique(squares[39:57, 39:57].reshape(-1, 3), axis=0)) == 1
    assert np.array_equal(squares[:32], render(scene)[:32]) and not np.array_equal(squares, render(scene))


def test_cells_are_whole_patches_of_the_codec():
    # red if a pattern's period does not divide 16 px, or CELL is no multiple of it
    for name in world.BACKGROUNDS:
        ground = render(Scene(name, ())).astype(int)
        assert np.array_equal(ground[:, :16], ground[:, 32:48]), name
    assert world.CELL % 16 == 0


@pytest.mark.parametrize(("split", "objects", "named"), [("training", 3, "split"), ("train", 5, "max_objects")])
def test_wrong_arguments_are_named(split: str, objects: int, named: str):
    with pytest.raises(ValueError, match=named):
        sample_scene(split, 0, 0, max_objects=objects)
