"""What file systems, JSON and `datasets` can hold beside pictures: counted, or refused in words, and nothing hangs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from own_pictures import data_for, png, take, write_folder
from PIL import Image

from uae_lightning.data import sources
from uae_lightning.data.image_text import image_bytes
from uae_lightning.data.images import BadFile, read_file
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.usage import UsageError


@pytest.fixture(scope="module")
def held_out_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Two good pictures, the second with a pipe for a caption, and what only looks like a picture."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for index in (0, 1):
        (folder / f"{index}.png").write_bytes(png(100 + index))
    (folder / "0.txt").write_text("a caption")
    os.mkfifo(folder / "1.txt")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "self.png").symlink_to("self.png")
    (folder / "self").symlink_to("self")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "closed").mkdir()
    (folder / "closed" / "2.png").write_bytes(png(102))
    return folder


def without_permission(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Root may look into every folder, so one that forbids it is played."""
    scandir = os.scandir

    def refused(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(sources.os, "scandir", refused)


def test_pipes_devices_circles_and_closed_folders_are_counted(odd: Path, held_out_folder: Path, monkeypatch):
    # red (it hangs, or eats all memory) if `read_file` reads what is no file; red if a closed folder ends the walk
    without_permission(monkeypatch, odd / "closed")
    data = data_for(odd, validation_path=str(held_out_folder), max_skipped=1.0, batch_size=1)
    with pytest.warns(UserWarning, match=r"left out: without suffix \(1\)"):
        batches = take(data, 8)
    assert {(batch.keys[0], batch.captions[0]) for batch in batches} == {("0.png", "a caption"), ("1.png", "")}
    assert {key: reason for (_, key), reason in data.skipped_files.reasons.items()} == {
        "pipe.jpg": "not a file", "endless.png": "not a file", "self.png": "unreadable file",
        "gone.png": "missing file", "closed/": "unreadable folder",
    }  # fmt: skip
    assert data.skipped_files.converted["without its not a file"]


def test_a_folder_that_nobody_may_read_is_named(odd: Path, monkeypatch):
    # red if PermissionError comes through
    without_permission(monkeypatch, odd)
    with pytest.raises(UsageError, match=r"odd cannot be read \(Permission denied\).*data.init_args.path"):
        open_source(str(odd), Columns())


@pytest.mark.parametrize("path", ["", "x" * 5000])
def test_a_path_that_can_be_none_is_named(path: str):
    # red if "" is the current folder, or ENAMETOOLONG comes through
    with pytest.raises(UsageError, match="data.init_args.path"):
        open_source(path, Columns())


def test_odd_rows_of_a_jsonl_are_skipped_or_named(tmp_path: Path):
    # red if a range of a pipe is waited for, or a NUL in a path is an error without a name
    os.mkfifo(tmp_path / "pipe")
    rows = [{"image": "pipe", "offset": 0, "bytes": 5}, {"image": "a\0b"}, {"image": "\ud800"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(tmp_path / "rows.jsonl"), Columns())
    found = []
    for sample in source.by_hash(3):
        with pytest.raises(BadFile) as error:
            image_bytes(sample)
        found.append(error.value.reason)
    assert sorted(found) == ["not a file", "unreadable file", "unreadable file"]
    for line, words in (
        ("[" * 100_000, "not JSON"),
        (json.dumps({"image": "a", "offset": 0, "bytes": 2**70}), "'bytes' must be a number of bytes"),
    ):
        (tmp_path / "rows.jsonl").write_text('{"image": "a"}\n' + line)
        with pytest.raises(UsageError, match=f"line 2: {words}"):
            open_source(str(tmp_path / "rows.jsonl"), Columns())


def test_json_nested_too_deep_is_a_damaged_caption():
    # red if RecursionError comes through
    assert sources.texts_of({"json": b"[" * 100_000}, Columns())[0].reason == "damaged caption"


# ---------------------------------------------------------------------------------------------------- saved data sets


def saved(folder: Path, features: dict | None = None, **columns) -> Path:
    datasets = pytest.importorskip("datasets")
    made = datasets.Features(features) if features else None
    datasets.Dataset.from_dict(columns, features=made).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1, 2], "caption": ["a", "b"]}, r"column 'image' holds int64.*data.init_args.image_column"),
        ({"image": [["a.png"]], "caption": ["a"]}, r"column 'image' holds .*string.*data.init_args.image_column"),
        ({"image": ["a.png"], "caption": [[1, 2]]}, r"'caption' holds int64.*data.init_args.caption_column"),
        ({"image": ["a.png"], "caption": [3]}, r"'caption' holds int64.*data.init_args.caption_column"),
        ({"image": [], "caption": []}, "is empty, damaged or unfinished"),
    ],
)
def test_a_saved_data_set_of_other_types_is_named(columns: dict, message: str, tmp_path: Path):
    # red if the types of columns are not looked at
    with pytest.raises(UsageError, match=message):
        open_source(str(saved(tmp_path / "saved", **columns)), Columns())


def test_columns_that_can_be_read_are(tmp_path: Path):
    # red if a type is missing in the list of those that hold pictures or captions
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.png").write_bytes(png(0))
    value, path = datasets.Value, str(tmp_path / "a.png")
    forms = [
        ({"image": value("binary"), "caption": value("large_string")}, [png(0)]),
        ({"image": value("string"), "caption": value("string")}, [path]),
        ({"image": {"bytes": value("binary"), "path": value("string")}, "caption": value("string")},
         [{"bytes": png(0), "path": None}]),
        ({"image": datasets.Image(), "caption": value("null")}, [path]),
    ]  # fmt: skip
    for number, (features, image) in enumerate(forms):
        caption = [None] if number == 3 else ["a caption"]
        source = open_source(str(saved(tmp_path / f"{number}", features, image=image, caption=caption)), Columns())
        [sample] = source.read(0)
        assert image_bytes(sample) == png(0) and sample.caption == caption[0], features


def test_a_saved_data_set_that_is_cut_is_named(tmp_path: Path):
    # red if errors of pyarrow or of json come through
    folder = saved(tmp_path / "saved", image=["a.png"] * 300, caption=["x" * 100] * 300)
    [arrow] = folder.glob("*.arrow")
    whole = {path: path.read_bytes() for path in (arrow, folder / "state.json", folder / "dataset_info.json")}
    for path, content in whole.items():
        for size in (0, len(content) // 2):
            path.write_bytes(content[:size])
            with pytest.raises(UsageError, match="saved is empty, damaged or unfinished.*save_to_disk"):
                open_source(str(folder), Columns())
        path.write_bytes(content)
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.open_stream(arrow) as reader, pyarrow.ipc.new_stream(arrow, reader.schema):
        pass
    with pytest.raises(UsageError, match="saved has no rows"):
        open_source(str(folder), Columns())
    arrow.unlink()
    with pytest.raises(UsageError, match="saved is empty, damaged or unfinished.*save_to_disk"):
        open_source(str(folder), Columns())


def test_a_damaged_row_of_a_saved_data_set_is_skipped(tmp_path: Path):
    # red if what pyarrow says of a row comes through
    folder = saved(tmp_path / "saved", image=["a.png", "b.png"], caption=["c\u00e9\u00e9", "d"])
    [arrow] = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes().replace("\u00e9\u00e9".encode(), b"\xff\xff\xff\xff"))
    source = open_source(str(folder), Columns())
    first, second = (next(source.read(unit)) for unit in (0, 1))
    assert first.image.reason == "damaged row" and second.caption == "d"


# ---------------------------------------------------------------------------------------------------- shapes


def test_specks_and_stripes_are_skipped_unless_they_are_asked_for(tmp_path: Path, held_out_folder: Path):
    # red if the sides are not looked at before the picture is cropped, or the options are not handed on
    folder = tmp_path / "shapes"
    folder.mkdir()
    for width, height in ((1, 1), (7, 7), (8, 8), (8, 400), (8, 401), (30_000, 2)):
        noise = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{width}x{height}.png")
    options = {"validation_path": str(held_out_folder), "batch_size": 1, "max_skipped": 1.0}
    data = data_for(folder, **options)
    assert {batch.keys[0] for batch in take(data, 6)} == {"8x8.png", "8x400.png"}
    assert {key: reason for (_, key), reason in data.skipped_files.reasons.items()} == {
        "1x1.png": "too small", "7x7.png": "too small", "30000x2.png": "too small", "8x401.png": "too long and thin",
    }  # fmt: skip
    data = data_for(folder, **options, min_source_side=1, max_aspect_ratio=15_000.0)
    assert len({batch.keys[0] for batch in take(data, 6)}) == 6


def test_a_stream_without_pictures_says_why(tmp_path: Path, held_out_folder: Path):
    # red if the reasons are left out
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"" if index else b"text")
    data = data_for(tmp_path, validation_path=str(held_out_folder), max_skipped=1.0)
    with pytest.raises(UsageError, match=r"no picture to train on: empty file \(2\), not a picture \(1\)"):
        take(data, 1)
    with pytest.raises(UsageError, match=r"no picture to train on: held out \(40\)"):
        take(data_for(held_out_folder, validation_path=str(held_out_folder), validation_pictures=40), 1)


def test_read_file_reads_files(tmp_path: Path):
    # red if a folder is taken for a file that cannot be read
    with pytest.raises(BadFile, match="not a file"):
        read_file(tmp_path)
