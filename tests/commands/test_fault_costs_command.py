"""`uae fault-costs` on scenes and on a folder of photographs."""

import sys
from pathlib import Path

import pytest

from uae_lightning.cli import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/conf"))
from small_models import save_pictures  # noqa: E402

SCENES = f"--config={ROOT}/conf/scenes/encoder_rl.yaml"


def rows(text: str) -> dict[str, list[float]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: [float(value) for value in values] for name, *values in cells[2:]}


def test_of_a_stage_on_scenes(capsys):
    # red if the stage's own reward is not taken, or `--pictures` is not handed on
    assert main(["fault-costs", SCENES, "--pictures=4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("PerceptualGrid, 4 scenes") and "added copy" in rows(said)
    assert all(full > faint > 0 for name, (full, faint) in rows(said).items() if ":" not in name)


def test_of_a_stage_on_photographs(tmp_path, capsys):
    # red if `held_out` goes on for ever or gives whole batches, or scenes are asked for their graphs
    save_pictures(tmp_path / "photos", 5, seed=0)
    data = {"": "uae_lightning.data.image_text.ImageTextData", ".init_args.path": tmp_path / "photos",
            ".init_args.resolution": 48, ".init_args.validation_pictures": 4, ".init_args.num_workers": 0,
            ".init_args.validation_batch_size": 2}  # fmt: skip
    options = [f"--data{name}={value}" for name, value in data.items()]
    assert main(["fault-costs", SCENES, *options, "--pictures=3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("PerceptualGrid, 3 pictures")
    assert list(rows(said)) == ["missing", "added", "place", "color", "missing : added"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--config"),
        ([SCENES, "--pictures=0"], "--pictures"),
        ([f"--config={ROOT}/conf/scenes/encoder_rl.yaml", "--trainer.callbacks=null"], "names no reward"),
    ],
)
def test_mistakes_in_the_call(args, words, capsys):
    # red if the check of `reward is None` goes
    assert main(["fault-costs", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
