import json
from types import SimpleNamespace

from PIL import Image

from uae_lightning.report.captions import CaptionMarker
from uae_lightning.report.pictures import Column
from uae_lightning.scenes.marked_captions import marked_captions
from uae_lightning.scenes.scene import Scene, SceneObject
from uae_lightning.study import page
from uae_lightning.study.figures import columns_along
from uae_lightning.study.page import caption_table, instruments, number, renewed


def write_gallery(stage, steps):
    (stage / "gallery").mkdir(parents=True)
    for name in ("originals", *(f"step-{step:06d}" for step in steps)):
        Image.new("RGB", (16, 8)).save(stage / "gallery" / f"{name}.png")
    captions = {step: [f"{stage.name} {step}"] * 2 for step in steps}
    (stage / "gallery" / "captions.json").write_text(json.dumps(captions))


def test_columns_keep_the_start_and_the_end_of_every_stage(tmp_path):
    # red with `others` in place of `ends` for the last step, or with `sorted` left out
    for name, steps in (("a", [0, 100, 200, 300, 400]), ("b", [0, 10, 20, 30]), ("c", [0, 12, 24])):
        write_gallery(tmp_path / name, steps)
    stages = [tmp_path / name for name in "abc"]
    titles = [column.title for column in columns_along(stages, most=6)]
    assert titles == ["original", "start", "a 200", "a 400", "b 20", "b 30", "c 24"]
    assert len(columns_along(stages, most=99)) == 1 + 1 + 4 + 3 + 2  # the first step of b is the last of a
    assert [column.title for column in columns_along(stages, most=2)] == ["original", "start", "a 400", "b 30", "c 24"]


def test_a_caption_that_stays_is_not_repeated():
    # red with `!=` turned into `==`
    scene = Scene("sand", (SceneObject("car", "red", "large", 0),))
    columns = [Column(str(number), [], [text]) for number, text in enumerate(["car", "car", "red car", "red car"])]
    marker = SimpleNamespace(mark=lambda captions, key, data: marked_captions(captions, scene))
    assert caption_table(columns, 0, marker, "", {}).splitlines()[2:] == ["| 0 | car |", "| 2 | **red** car |"]
    plain = caption_table(columns, 0, CaptionMarker(), "", {}).splitlines()[2:]
    assert plain == ["| 0 | car |", "| 2 | red car |"]


def test_a_section_is_replaced_in_its_place():
    # red with the greedy `.*` in place of `.*?`
    before = renewed(renewed("# Results\n", "a", "one"), "b", "two")
    again = renewed(before, "a", "three \\1")
    assert again == before.replace("one", "three \\1") and "two" in again


def test_numbers_have_three_digits():
    # red with either limit moved
    assert [number(value) for value in (0.1234, 1.234, 12.34)] == ["0.123", "1.23", "12.3"] and number(
        2, "+"
    ) == "+2.00"


def test_judges_are_listed_with_the_floor_apart():
    # red with the floor among the accuracies
    one = {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 9}
    text = instruments(
        {"parser": one, "backbones/pixels/color": one, "backbones/pixels/overall": one, "floor/pixels": one}
    )
    accuracy, floor = text.split("Where the scale")
    assert accuracy.count("| backbones/pixels/overall |") == 2 and accuracy.count("| backbones/pixels/color |") == 1
    assert "| pixels |" in floor and "| pixels |" not in accuracy


def test_one_arm_among_many_is_folded_away(monkeypatch):
    # red with the heading left at the level of a table's, or pictures of two arms under one name
    drawn = []
    monkeypatch.setattr(page, "pictures_and_captions", lambda *args: drawn.append(args[-1]) or ["### Pictures\n\nhere"])
    arm = SimpleNamespace(arm=SimpleNamespace(name="a_only", title="+ A only"))
    text = page.folded(SimpleNamespace(name="tiny"), arm, None)
    assert text.startswith("<details><summary>Along the run: + A only</summary>\n\n#### Pictures")
    assert drawn == ["tiny-a_only"]
