"""A JSONL whose pictures lie within other files, as `uae caption-data` writes it for sources without files."""

import json
from pathlib import Path

import pytest
from own_pictures import png

from uae_lightning.data.image_text import image_bytes
from uae_lightning.data.images import BadFile
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns, JsonLines
from uae_lightning.usage import UsageError


def written(folder: Path, *rows: dict) -> JsonLines:
    """Two pictures, one after the other behind 7 bytes, in a.bin, and a JSONL of `rows`."""
    (folder / "a.bin").write_bytes(b"7 bytes" + png(0) + png(1))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"image": "a.bin"} | row) + "\n" for row in rows))
    return open_source(str(folder / "rows.jsonl"), Columns())


def test_the_bytes_that_a_row_names_are_read(tmp_path: Path):
    # red with `file.seek(0)`, or with `read()` in `_content`
    ranges = [(7, len(png(0))), (7 + len(png(0)), len(png(1)))]
    source = written(tmp_path, *({"offset": offset, "bytes": size, "caption": "c"} for offset, size in ranges))
    assert [image_bytes(source.sample(unit)) for unit in (0, 1)] == [png(0), png(1)]


def test_pictures_of_one_file_have_keys_of_their_own(tmp_path: Path):
    # red with `return image` in `_key`: by_hash would hold them out together, and skipped.jsonl would list one
    source = written(tmp_path, {"offset": 7, "bytes": 3}, {"offset": 10, "bytes": 3}, {"offset": 9})
    assert list(source.keys()) == [source.sample(unit).key for unit in range(3)] == ["a.bin@7", "a.bin@10", "a.bin"]
    assert {sample.key for sample in source.by_hash(3)} == set(source.keys())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "none.bin", "offset": 0, "bytes": 1}, "missing file"),
        ({"image": ".", "offset": 0, "bytes": 1}, "not a file"),
        ({"image": "a\0b", "offset": 0, "bytes": 1}, "unreadable file"),
        ({"offset": 0, "bytes": 1 << 40}, "too many bytes"),
    ],
)
def test_what_cannot_be_read_is_skipped(row: dict, reason: str, tmp_path: Path):
    # red without either `except` of `images.opened`
    with pytest.raises(BadFile, match=reason):
        image_bytes(written(tmp_path, row).sample(0))


@pytest.mark.parametrize("value", ["7", 7.5, -1, True, None])
def test_what_is_no_number_of_bytes_is_named(value, tmp_path: Path):
    # red without the check in `_row`
    with pytest.raises(UsageError, match="line 2: 'offset' must be a number of bytes"):
        written(tmp_path, {"offset": 0, "bytes": 1}, {"offset": value, "bytes": 1})
