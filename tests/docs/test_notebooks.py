"""The notebooks: that of scenes runs in miniature, that of photographs compiles."""

from __future__ import annotations

import re

from documented import NOTEBOOKS, code_of

from uae_lightning.scenes.scene import IMAGE_SIZE

SCENES, PHOTOS = NOTEBOOKS
SMALL = {"SCENES": 2, "SHOWN": 2, "GROUP": 2, "STEPS": 1}


def test_the_idea_on_scenes_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch, capsys):
    # red with a cell that needs another order, or a name, option or class of an earlier version
    monkeypatch.chdir(tmp_path)
    settings, *cells = code_of(SCENES)
    assert set(re.findall(r"^(\w+) = ", settings, re.MULTILINE)) == {*SMALL}
    names = {"__name__": "notebook", **SMALL}
    for number, cell in enumerate(cells, 2):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert names["again"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE) and (names["end"] <= 1).all()
    assert names["rows"](names["originals"], names["again"]).size == (4 * IMAGE_SIZE, 4 * IMAGE_SIZE)
    assert (tmp_path / "runs/notebook/report.html").is_file() and "reward " in capsys.readouterr().out


def test_lora_on_your_photos_compiles_and_says_what_is_missing(tmp_path, monkeypatch):
    # red with a cell that is no Python, or if it goes on without pictures
    monkeypatch.chdir(tmp_path)
    first, *cells = code_of(PHOTOS)
    for number, cell in enumerate(cells, 2):
        compile(cell, f"cell {number}", "exec")
    try:
        exec(compile(first, "cell 1", "exec"), {})
    except AssertionError as error:
        assert "data/photos is missing" in str(error)
    else:
        raise AssertionError("it goes on without pictures")
