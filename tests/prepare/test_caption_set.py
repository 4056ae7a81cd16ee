"""From pictures to a set, and from the set back to pictures with captions."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from caption_sets import caption_data, describe, rows, save_scenes, scene
from PIL import Image

from uae_lightning.cli import main
from uae_lightning.data.image_text import ImageTextData, image_bytes, read_caption
from uae_lightning.data.images import read_picture
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.prepare.caption_report import Counts
from uae_lightning.prepare.filters import Caption, CaptionFilter
from uae_lightning.usage import UsageError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scenes(tmp_path_factory.mktemp("pictures") / "scenes", 15)


def read(path: Path) -> dict[str, np.ndarray]:
    """Caption -> pixels of a set, by the project's own reader."""
    source = open_source(str(path), Columns())
    samples = [sample for unit in range(len(source)) for sample in source.read(unit)]
    return {read_caption(sample.caption): np.asarray(read_picture(image_bytes(sample)).image) for sample in samples}


def in_every_form(scenes: Path, folder: Path) -> dict[str, str]:
    """The same pictures as JSONL, as 2 shards and as a `datasets` data set."""
    datasets = pytest.importorskip("datasets")
    paths = sorted(scenes.glob("*.png"))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"file": str(p), "caption": 3}) + "\n" for p in paths))
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"{shard}.tar", "w") as tar:
            for path in paths[shard * 8 : shard * 8 + 8]:
                tar.add(path, path.name)
    images = datasets.Dataset.from_dict({"image": list(map(str, paths))}).cast_column("image", datasets.Image())
    images.save_to_disk(folder / "saved")
    return {"rows.jsonl": "file", "shards": "image", "saved": "image"}


def test_every_form_becomes_the_same_set_and_both_outputs_read_back(scenes: Path, tmp_path: Path):
    # red if the jpg's or txt's name differs in a sample, relpath starts at another folder, or a unit is left out
    expected = {describe([scene(index)])[0].text: np.asarray(scene(index)) for index in range(15)}
    sources = {str(scenes): "image"} | {str(tmp_path / k): v for k, v in in_every_form(scenes, tmp_path).items()}
    for number, (source, column) in enumerate(sources.items()):
        folder = tmp_path / f"set{number}"
        data = caption_data(scenes, folder)
        data.reading.source = open_source(source, Columns(column, ""))
        if data.reading.source.splittable:
            data.reading.units = range(2)
        counts = data.run()
        assert counts.kept == counts.seen == 15
        found = read(folder)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[caption], expected[caption]) for caption in expected)
        listed = rows(folder / "captions.jsonl")
        assert [row["caption"] for row in listed] == list(expected)  # in the order of the source
        found = read(folder / "captions.jsonl")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[caption], expected[caption]) for caption in expected)
        for row in listed:  # in a shard, a picture of one's own lies where the row says
            if "bytes" in row:
                with (folder / row["image"]).open("rb") as tar:
                    tar.seek(row["offset"])
                    data = tar.read(row["bytes"])
                assert np.array_equal(read_picture(data).image, expected[row["caption"]])


def test_image_text_data_trains_on_either_output(scenes: Path, tmp_path: Path):
    # red if a caption is written as JSON, or not at all
    caption_data(scenes, tmp_path / "set").run()
    for path in (tmp_path / "set", tmp_path / "set" / "captions.jsonl"):
        data = ImageTextData(
            str(path), resolution=16, batch_size=4, validation_pictures=3, num_workers=0, require_captions=True
        )
        batch = next(iter(data.train_dataloader()))
        assert batch.images.shape == (4, 3, 16, 16) and all(text.startswith("picture ") for text in batch.captions)


def test_a_plain_webdataset_reader_agrees(scenes: Path, tmp_path: Path):
    # red if a name in the tar has a second dot
    webdataset = pytest.importorskip("webdataset")
    caption_data(scenes, tmp_path, shard_size=10).run()
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [
        *(f"000000_{index:06d}" for index in range(10)), *(f"000001_{index:06d}" for index in range(5)),
    ]  # fmt: skip
    for index, sample in enumerate(samples):
        assert np.array_equal(sample["png"], np.asarray(scene(index)))
        assert sample["txt"] == describe([scene(index)])[0].text
        assert sample["json"] | {"source": ""} == {
            "source": "", "key": f"{index:03d}.png", "model": "m", "words": 2, "converted": []
        }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- bad files


def save_bad_files(folder: Path) -> None:
    """One of each kind beside scenes 0 to 14; scenes from 100 on are in no other file."""
    save_scenes(folder, 15)
    png = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "film.mp4").write_bytes(b"\0")
    Image.new("L", (20_000, 10_000)).save(folder / "bomb.png")
    Image.new("RGB", (600, 9)).save(folder / "thin.png")
    Image.new("RGB", (3, 3)).save(folder / "small.png")
    large = [scene(100 + index).resize((256, 192), Image.Resampling.BICUBIC) for index in range(6)]
    large[0].convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(large[1].convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    large[2].save(folder / "animated.webp", save_all=True, append_images=[large[3]], lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    large[4].save(folder / "turned.jpg", exif=exif, quality=95)
    large[5].save(folder / "plain.jpg", quality=90)
    large[5].resize((128, 96)).save(folder / "smaller.jpg", quality=90)
    shutil.copy(folder / "003.png", folder / "copy.png")


def test_bad_files_are_converted_or_skipped_and_counted(tmp_path: Path):
    # red if HARMLESS holds "turned upright", or the length of a side is not looked at
    save_bad_files(tmp_path / "mixed")
    counts = caption_data(tmp_path / "mixed", tmp_path / "set", duplicate_bits=3).run()
    assert (counts.seen, counts.kept) == (28, 20)
    assert counts.dropped == {"exact duplicate": 1, "near-duplicate": 1}
    skipped = {row["key"]: row["reason"] for row in rows(tmp_path / "set" / "skipped.jsonl")}
    assert skipped == {
        "bomb.png": "too many pixels", "cut.png": "damaged", "small.png": "too small", "text.png": "not a picture",
        "thin.png": "too long and thin", "zero.jpg": "empty file",
    }  # fmt: skip
    assert counts.converted == {
        "CMYK": 1, "16 or 32 bits": 1, "grayscale": 1, "first frame of an animation": 1, "turned upright": 1,
    }  # fmt: skip
    assert counts.rewritten == 4
    files = {}
    for tar in sorted((tmp_path / "set").glob("*.tar")):
        with tarfile.open(tar) as shard:
            members = {member.name: shard.extractfile(member).read() for member in shard}
        for name, content in members.items():
            stem, suffix = name.split(".")
            if suffix not in ("txt", "json"):
                files[json.loads(members[f"{stem}.json"])["key"]] = (suffix, content)
    for key, (suffix, content) in files.items():
        original, now = read_picture(tmp_path / "mixed" / key).image, Image.open(io.BytesIO(content))
        if key in ("cmyk.jpg", "turned.jpg"):  # as a JPEG again
            difference = np.asarray(original, float) - np.asarray(now, float)
            assert suffix == "jpg" and now.mode == "RGB" and not now.getexif() and np.abs(difference).mean() < 2
        elif key in ("sixteen.png", "animated.webp"):
            assert suffix == "png" and np.array_equal(original, now)
        else:
            assert content == (tmp_path / "mixed" / key).read_bytes()
    duplicates = {row["key"]: row for row in rows(tmp_path / "set" / "dropped.jsonl")}
    named = {row["name"]: row["key"] for row in rows(tmp_path / "set" / "captions.jsonl")}
    assert named[duplicates["copy.png"]["of"]] == "003.png" and named[duplicates["smaller.jpg"]["of"]] == "plain.jpg"


def test_too_many_bad_files_stop_it_and_are_listed(tmp_path: Path):
    # red if skips of a shard are not counted before it ends
    save_scenes(tmp_path / "mixed", 80)
    for index in range(60):
        (tmp_path / "mixed" / f"z{index}.png").write_bytes(b"bad")
    with pytest.raises(UsageError, match="20 of 100 pictures"):
        caption_data(tmp_path / "mixed", tmp_path / "set", max_skipped=0.19, shard_size=1000).run()
    assert len(rows(tmp_path / "set" / "skipped.jsonl")) == 20 and not list((tmp_path / "set").glob("*.tar"))


# ---------------------------------------------------------------------------------------------------- what is dropped


def test_captions_are_dropped_by_reason_and_counts_add_up(scenes: Path, tmp_path: Path):
    # red if a dropped caption is written to the shard, or its picture forgotten: its copy would be captioned again
    mixed = tmp_path / "mixed"
    shutil.copytree(scenes, mixed)
    shutil.copy(mixed / "001.png", mixed / "zcopy.png")
    asked = []

    def captioner(pictures: list[Image.Image]) -> list[Caption]:
        texts = ["a", "one two three", "", "cut off here", "to be to be to be to be to be"]
        start = len(asked)
        asked.extend(pictures)
        return [Caption(texts[i % 5], i % 5 != 3) for i in range(start, len(asked))]

    limits = CaptionFilter(2, 20, 0.2)
    counts = caption_data(mixed, tmp_path / "set", captioner=captioner, caption_filter=limits, duplicate_bits=3).run()
    assert len(asked) == 15 and counts.kept == 3
    assert counts.dropped == {
        "too short": 3, "empty caption": 3, "unfinished": 3, "repetitive": 3, "exact duplicate": 1
    }  # fmt: skip
    report = json.loads((tmp_path / "set" / "report.json").read_text())
    assert report["seen"] == 16 == report["kept"] + sum(report["dropped"].values()) + sum(report["skipped"].values())
    assert report["words"] == {"least": 3, "median": 3, "mean": 3.0, "most": 3}
    dropped = rows(tmp_path / "set" / "dropped.jsonl")
    assert {(row["reason"], row.get("caption")) for row in dropped} >= {("too short", "a"), ("exact duplicate", None)}
    assert set(read(tmp_path / "set")) == {"one two three"}


def test_a_shard_without_samples_is_not_written(scenes: Path, tmp_path: Path):
    # red if the tar is opened before it is needed: readers would find an empty shard
    counts = caption_data(scenes, tmp_path, caption_filter=CaptionFilter(3, 20, 0.2)).run()
    assert counts.dropped == {"too short": 15} and not list(tmp_path.glob("*.tar"))
    assert caption_data(scenes, tmp_path, caption_filter=CaptionFilter(3, 20, 0.2)).run() == counts


def test_counts_that_do_not_add_up_are_an_error():
    # red if any of the three comparisons is left out
    right = {"kept": 1, "dropped": 0, "skipped": 1}
    counts = Counts(seen=2)
    counts.add({"status": "kept", "words": 4})
    counts.add({"status": "skipped", "reason": "damaged"})
    counts.check(2, right)
    counts.check(None, right)
    for total, listed in ((3, right), (2, right | {"kept": 2})):
        with pytest.raises(RuntimeError, match="do not add up"):
            counts.check(total, listed)
    counts.seen = 3
    with pytest.raises(RuntimeError, match="do not add up"):
        counts.check(3, right)


@pytest.mark.parametrize("form", ["scenes", "shards"])
def test_parts_share_the_pictures_out(form: str, scenes: Path, tmp_path: Path):
    # red if `part - 1` becomes `part`, or fewer shards than parts leave a part without pictures
    in_every_form(scenes, tmp_path)
    source = scenes if form == "scenes" else tmp_path / "shards"
    for parts in (2, 3):
        shares = []
        for part in range(1, parts + 1):
            folder = tmp_path / f"{parts}-{part}"
            assert caption_data(source, folder, part=part, parts=parts).run().kept >= 4
            shares.append(set(read(folder)))
        assert sum(map(len, shares)) == len(set.union(*shares)) == 15


# ---------------------------------------------------------------------------------------------------- the command


def test_mistakes_are_named_with_the_options_of_the_command(scenes: Path, tmp_path: Path, capsys):
    # red if the names of a data module's init_args come through
    call = ["caption-data", f"--from={scenes}", f"--to={tmp_path / 'set'}", "--model=shipped:scenes/encoder"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for args, words in (
        (["caption-data", "--to=x", "--model=y"], ["--from"]),
        ([*call, "--from=nowhere"], ["nowhere does not exist", "--from"]),
        ([*call, f"--to={scenes}"], [str(scenes), "--to", "did not write"]),
        ([*call, f"--to={tmp_path / 'full'}"], ["did not write", "--to"]),
        ([*call, f"--to={scenes / '000.png'}"], ["is a file"]),
        ([*call, "--min-words=9", "--max-words=8"], ["--min-words (9)", "--max-words (8)"]),
        ([*call, "--part=3/2"], ["--part", "2/8"]),
        ([*call, "--duplicate-bits=16"], ["--duplicate-bits", "0 to 15"]),
        ([*call, "--max-skipped=5%"], ["--max-skipped", "from 0 to 1"]),
        ([*call, "--batch=4"], ["--batch", "--batch-size"]),
        ([*call, "--model=./none"], ["./none", "does not exist"]),
    ):
        assert main(args) in (1, 2), args
        error = capsys.readouterr().err
        assert all(word in error for word in words) and "init_args" not in error, error
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"
