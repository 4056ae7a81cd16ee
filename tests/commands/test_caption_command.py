import json
from pathlib import Path

import pytest
from PIL import Image

from uae_lightning.cli import main
from uae_lightning.commands import caption
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.prepare.caption_lines import CaptionLines, find_pictures, written_by
from uae_lightning.prepare.filters import Caption
from uae_lightning.run.loading import load_writer
from uae_lightning.usage import UsageError

ROOT = Path(__file__).parents[2]
SCENES = str(ROOT / "conf" / "scenes" / "encoder_rl.yaml")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five pictures in two folders, told apart by their width."""
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        path = tmp_path / "photos" / ("deep" if number > 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16 + number, 16), (40 * number, 0, 0)).save(path)
    return tmp_path / "photos"


def widths(images, number):
    return [f"{number}: {image.width} ü" for image in images]


def lines(photos, to="c.jsonl", by="a 1"):
    return CaptionLines(find_pictures([photos]), Path(to), by, 2)


def rows(path="c.jsonl"):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_every_picture_has_a_line_that_training_reads(photos):
    # red with `str(picture)` as the name of a file elsewhere, or `rglob` as `glob`
    assert lines(photos, "photos/c.jsonl").run(widths) == 5
    assert [row["caption"] for row in rows("photos/c.jsonl")] == ["0: 16 ü", "0: 17 ü", "1: 18 ü", "1: 19 ü", "2: 20 ü"]
    assert rows("photos/c.jsonl")[3]["image"] == "deep/3.png"
    source = open_source("photos/c.jsonl", Columns(captions_needed=True))
    assert len(source) == 5 and next(source.read(4)).caption == "2: 20 ü"


def test_a_killed_process_goes_on_as_if_nothing_had_happened(photos):
    # red without os.truncate, or with batches made of the pictures that are left
    lines(photos).run(widths)
    whole = Path("c.jsonl").read_bytes()
    for size in (len(whole) - 3, whole.index(b"\n") + 5, 0):
        Path("c.jsonl").write_bytes(whole[:size])
        assert lines(photos).run(widths) == 5
        assert Path("c.jsonl").read_bytes() == whole


def test_captions_of_others_and_other_files_are_left_alone(photos):
    # red without the look at `by`
    lines(photos).run(widths)
    with pytest.raises(UsageError, match="by a 1, these would be by b 2: --overwrite"):
        lines(photos, by="b 2").run(widths)
    Path("notes.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(UsageError, match=r"notes.jsonl, line 1 is not of `uae caption`"):
        lines(photos, "notes.jsonl").run(widths)
    assert Path("notes.jsonl").read_text() == '{"mine": 1}\n'


def test_broken_pictures_are_named_and_cost_nothing_else(photos):
    # red where the row of a broken picture moves the captions behind it
    (photos / "1.png").write_bytes(b"no picture")
    found = lines(photos)
    assert found.run(widths) == 4
    with pytest.raises(ValueError, match=r"1 of 5 files cannot be read .*1.png \(not a picture"):
        found.check()
    assert [row["caption"] for row in rows()] == ["0: 16 ü", "1: 18 ü", "1: 19 ü", "2: 20 ü"]


def test_who_captions_stands_in_every_line_and_depends_on_all_that_matters():
    # red with the seed left out of the settings
    first = caption.named("runs/demo", {"seed": 0})
    assert first.startswith("runs/demo ") and first != caption.named("runs/demo", {"seed": 1})


def test_a_model_of_transformers_is_shown_bounded_pictures_and_seeded_by_batch(photos):
    # red without `scaled_down`, or with one seed for all batches
    import torch

    seen = []

    def model(images):
        seen.extend(image.size for image in images)
        return [Caption(str(torch.rand(()).item()), True) for _ in images]

    write, large = written_by(model, 3), Image.new("RGB", (4000, 1000))
    assert write([large], 0) == write([large], 0) != write([large], 1)
    assert seen[0][0] * seen[0][1] <= 1_003_520


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere", "--config", SCENES], ["nowhere does not exist", "name a picture"]),
        (["empty", "--config", SCENES], ["empty has no pictures"]),
        (["photos"], ["--weights", "--config", "--model"]),
        (["photos", "--model", "x", "--weights", "y"], ["leave --weights and --config out"]),
        (["photos", "--weights", "photos"], ["not the folder of a run"]),
        (["photos", "--config", SCENES, "--to", "photos"], ["--to photos", "it is a folder"]),
    ],
)
def test_mistakes_in_a_call_are_told_in_one_line(args, words, photos, capsys):
    # red without the check of the places before anything is loaded
    Path("empty").mkdir()
    assert main(["caption", *args]) in (1, 2)
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and all(word in error[0] for word in words), error


def test_the_shipped_weights_caption_a_scene_and_stream_it(photos, capsys, monkeypatch):
    # red with the model on the meta device left without its encoder, or with captions written at the end alone
    monkeypatch.chdir(ROOT)
    assert main(["caption", str(photos / "0.png"), str(photos / "deep"), "--config", SCENES, "--to", "-"]) == 0
    output, error = capsys.readouterr()
    said = [json.loads(line) for line in output.splitlines()]
    assert [Path(row["image"]).name for row in said] == ["0.png", "3.png", "4.png"] and all(r["caption"] for r in said)
    assert "3/3" in error and "Warning" not in error
    model = load_writer(Path(SCENES), None)
    assert next(model.decoder.parameters()).is_meta and not next(model.encoder.parameters()).is_meta
