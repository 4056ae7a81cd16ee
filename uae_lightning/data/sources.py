"""Where pictures with captions lie: a folder, a JSONL, WebDataset shards, a saved `datasets` data set.

A source is a list of units: single pictures, or shards, each a run of samples that can only be read in order.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import itertools
import json
import os
import re
import tarfile
import time
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from uae_lightning.data.images import MAX_BYTES, SUFFIXES, BadFile
from uae_lightning.usage import UsageError

ATTEMPTS = 4  # to read a shard over the network
SCANNED = 10  # samples of shards looked at for each one held out
RANGE = frozenset(("offset", "bytes"))  # where in a file a picture lies


@dataclass(frozen=True)
class Sample:
    """One picture as it lies in its source; nothing is decoded yet."""

    key: str  # the same for the same picture in every run
    image: bytes | Path | BadFile  # BadFile: the source itself is damaged there
    caption: bytes | str | BadFile | None


@dataclass(frozen=True)
class Columns:
    """Names of what a row of a JSONL or of a `datasets` data set holds, and whether it must hold a caption."""

    image: str = "image"
    caption: str = "caption"
    captions_needed: bool = False


class Source(ABC):
    splittable = False  # a unit is many samples

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out: Counter[str] = Counter()  # suffixes of files that are neither pictures nor captions

    @abstractmethod
    def __len__(self) -> int:
        """Units."""

    @abstractmethod
    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        """The samples of a unit, or of the given part of it."""

    @abstractmethod
    def by_hash(self, count: int) -> Iterator[Sample]:
        """At least `count` samples, if there are as many, in the order of a hash of their keys."""


class Indexed(Source):
    """Every unit is one picture, which can be read at once."""

    @abstractmethod
    def sample(self, unit: int) -> Sample: ...

    @abstractmethod
    def keys(self) -> Iterator[str]: ...

    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        yield self.sample(unit)

    def by_hash(self, count: int) -> Iterator[Sample]:
        hashes = ((key_hash(key), unit) for unit, key in enumerate(self.keys()))
        return (self.sample(unit) for _, unit in heapq.nsmallest(count, hashes))


class Folder(Indexed):
    """Pictures anywhere below a folder, the caption of `a/b.jpg` in `a/b.txt`."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        super().__init__(str(folder))
        self.folder = folder
        files = sorted(_files_below(folder))
        self.paths = [file for file in files if _suffix(file) in SUFFIXES]
        texts = {os.path.splitext(file)[0] for file in files if _suffix(file) == "txt"}
        captions = sum(os.path.splitext(path)[0] in texts for path in self.paths)
        self.left_out = Counter(_suffix(file) for file in files if _suffix(file) not in SUFFIXES | {"txt"})
        if not self.paths:
            raise UsageError(f"{folder} has no pictures: a picture's name ends in one of {', '.join(sorted(SUFFIXES))}")
        if columns.captions_needed and not captions:
            raise UsageError(
                f"no picture in {folder} has a caption: put a .txt of the same name beside each, or, for the RL "
                "stages, which need none, set data.init_args.require_captions to false"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def keys(self) -> Iterator[str]:
        return iter(self.paths)

    def sample(self, unit: int) -> Sample:
        path = self.folder / self.paths[unit]
        try:
            caption = path.with_suffix(".txt").read_bytes()
        except OSError:
            caption = None
        return Sample(self.paths[unit], path, caption)


class JsonLines(Indexed):
    """A row per picture; paths are relative to the file. Eight bytes of memory per row: where it begins.

    A row with `offset` and `bytes` is of a picture within a file, such as a shard (`uae caption-data` writes them).
    """

    def __init__(self, file: Path, columns: Columns) -> None:
        super().__init__(str(file))
        self.file, self.columns = file, columns
        self.offsets = array("q")
        with_caption = 0
        with file.open("rb") as lines:
            offset = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with_caption += columns.caption in self._row(line, number)
                    self.offsets.append(offset)
                offset += len(line)
        if not self.offsets:
            raise UsageError(f"{file} is empty: write one JSON object per line, with {columns.image!r}")
        if columns.captions_needed and not with_caption:
            raise UsageError(
                f"{file}, line 1: no {columns.caption!r}, nor in any later line; name the column that holds captions "
                "with data.init_args.caption_column, or, for the RL stages, which need no captions, set "
                "data.init_args.require_captions to false"
            )

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        at, columns = f"{self.file}, line {number}", self.columns
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{at}: not JSON in UTF-8 ({error}); write one JSON object per line") from error
        if not isinstance(row, dict) or columns.image not in row:
            found = f"only {', '.join(map(repr, row))}" if isinstance(row, dict) and row else "no columns"
            raise UsageError(
                f"{at}: no {columns.image!r}, {found}; give each line the path of a picture under that name, or name "
                "the column that holds it with data.init_args.image_column"
            )
        for name, kinds in ((columns.image, str), (columns.caption, str | None)):
            if not isinstance(row.get(name), kinds):
                raise UsageError(f"{at}: {name!r} must be a string, got {json.dumps(row.get(name))[:60]}")
        for name in RANGE if row.keys() >= RANGE else ():
            if type(row[name]) is not int or row[name] < 0:
                raise UsageError(f"{at}: {name!r} must be a number of bytes, got {json.dumps(row[name])[:60]}")
        return row

    def _row_at(self, unit: int) -> dict[str, Any]:
        with self.file.open("rb") as lines:  # opened each time: a file position must not be shared by workers
            lines.seek(self.offsets[unit])
            return json.loads(lines.readline())

    def __len__(self) -> int:
        return len(self.offsets)

    def keys(self) -> Iterator[str]:
        with self.file.open("rb") as lines:
            yield from (self._key(json.loads(line)) for line in lines if line.strip())

    def _key(self, row: dict[str, Any]) -> str:
        image = row[self.columns.image]
        return f"{image}@{row['offset']}" if row.keys() >= RANGE else image

    def sample(self, unit: int) -> Sample:
        row = self._row_at(unit)
        image = path = self.file.parent / row[self.columns.image]
        if row.keys() >= RANGE:
            image = _read_range(path, row["offset"], row["bytes"])
        return Sample(self._key(row), image, row.get(self.columns.caption))


class SavedDataset(Indexed):
    """A folder that `Dataset.save_to_disk` of the package `datasets` wrote; memory-mapped."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        super().__init__(str(folder))
        try:
            import datasets
        except ImportError as error:
            raise UsageError(
                f"{folder} was saved by the package `datasets`, which is not installed: "
                "pip install 'uae-lightning[data]'"
            ) from error
        self.rows = datasets.load_from_disk(str(folder))
        if isinstance(self.rows, dict):
            splits = " or ".join(str(folder / name) for name in self.rows)
            raise UsageError(f"{folder} holds several data sets: name one of them, {splits}")
        self.columns, names = columns, self.rows.column_names
        needed = ["image", "caption"] if columns.captions_needed else ["image"]
        for kind in needed:
            if (name := getattr(columns, kind)) not in names:
                raise UsageError(
                    f"{folder} has no column {name!r}, only {', '.join(map(repr, names))}: name the right one with "
                    f"data.init_args.{kind}_column"
                )
        kept = [name for name in (columns.image, columns.caption) if name in names]
        self.rows = self.rows.select_columns(kept)
        if isinstance(self.rows.features[columns.image], datasets.Image):
            self.rows = self.rows.cast_column(columns.image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> Iterator[str]:
        return (f"{unit:09d}" for unit in range(len(self)))

    def sample(self, unit: int) -> Sample:
        row = self.rows[unit]
        image = row[self.columns.image]
        if isinstance(image, dict):  # of an Image column: one of both is None
            image = image["path"] if image["bytes"] is None else image["bytes"]
        if image is None:
            image = BadFile("no picture", "the row is empty")
        return Sample(f"{unit:09d}", Path(image) if isinstance(image, str) else image, row.get(self.columns.caption))


class Shards(Source):
    """WebDataset: tar files whose members of one stem (`0001.jpg`, `0001.txt` or `0001.json`) are one sample.

    Read as a stream, from disk or from any URL that fsspec knows; a broken connection is taken up again.
    """

    splittable = True

    def __init__(self, urls: list[str], columns: Columns) -> None:
        super().__init__(urls[0] if len(urls) == 1 else f"{urls[0]} and {len(urls) - 1} more shards")
        self.urls, self.columns = urls, columns
        for url in urls:
            if "://" not in url and not Path(url).is_file():
                raise FileNotFoundError(f"shard {url} does not exist: correct the path in data.init_args")

    def __len__(self) -> int:
        return len(self.urls)

    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        return itertools.islice(self._samples(self.urls[unit]), part, None, parts)

    def by_hash(self, count: int) -> Iterator[Sample]:
        every = itertools.chain.from_iterable(map(self.read, range(len(self))))
        scanned = itertools.islice(every, SCANNED * count)
        return iter(heapq.nsmallest(count, scanned, key=lambda sample: key_hash(sample.key)))

    def _samples(self, url: str) -> Iterator[Sample]:
        done = 0
        for attempt in range(1, ATTEMPTS + 1):
            try:
                for sample in itertools.islice(_read_tar(url, self.columns.caption), done, None):
                    yield sample
                    done += 1
                if not done:
                    yield Sample(url, BadFile("empty shard"), None)
                return
            except tarfile.ReadError as error:
                yield Sample(url, BadFile("damaged shard", f"after {done} samples: {error}"), None)
                return
            except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:  # will be so again
                raise UsageError(f"shard {url} cannot be read: {error}; correct the path in data.init_args") from error
            except Exception as error:  # of the network: each file system of fsspec has its own
                if attempt == ATTEMPTS:
                    raise OSError(f"shard {url} cannot be read after {ATTEMPTS} attempts: {error}") from error
                time.sleep(2**attempt)


def open_source(path: str | list[str], columns: Columns, option: str = "path") -> Source:
    """The source at `path`: a folder of pictures, a `.jsonl`, shards (a `.tar`, a folder, a pattern such as
    `{000..127}.tar` or `*.tar`, URLs or a list of them), or a folder saved by `datasets`.

    Raises:
        UsageError, FileNotFoundError: there is none; `option` of the data module is named.
    """
    if isinstance(path, list) or "://" in path or re.search(r"[{*?]", path):
        return Shards(_shards(path), columns)
    place = Path(path)
    if place.is_dir():
        if (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
            return SavedDataset(place, columns)
        tars = sorted(map(str, place.glob("*.tar")))
        return Shards(tars, columns) if tars else Folder(place, columns)
    if not place.is_file():
        raise FileNotFoundError(f"{path} does not exist: correct data.init_args.{option}")
    if _is_tar(path):
        return Shards([path], columns)
    if place.suffix != ".jsonl":
        raise UsageError(
            f"data.init_args.{option} must be a folder of pictures, a .jsonl, .tar shards or a folder saved by "
            f"`datasets`, got {path}"
        )
    return JsonLines(place, columns)


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def expanded(pattern: str) -> list[str]:
    """`a{00..02}b{x,y}` -> a00bx, a00by, a01bx, ...; without braces the pattern itself."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        names = [str(number).zfill(len(span[1])) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        names = match[1].split(",")
    return [url for name in names for url in expanded(pattern[: match.start()] + name + pattern[match.end() :])]


def _shards(paths: str | list[str]) -> list[str]:
    patterns = [url for path in ([paths] if isinstance(paths, str) else paths) for url in expanded(path)]
    urls: list[str] = []
    for pattern in patterns:
        local = "://" not in pattern and re.search(r"[*?]", pattern)
        urls += sorted(glob.glob(pattern)) if local else [pattern]
    if not urls or not all(map(_is_tar, urls)):
        raise UsageError(f"{paths} names no .tar shards: correct the path in data.init_args")
    return urls


def _is_tar(url: str) -> bool:
    return url.split("?")[0].endswith((".tar", ".tar.gz", ".tgz"))


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _files_below(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Relative POSIX paths; links to folders are followed unless in a circle; hidden files are left out."""
    seen |= {os.path.realpath(folder)}
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry.name
        elif os.path.realpath(entry.path) not in seen:
            for file in _files_below(Path(entry.path), seen):
                yield f"{entry.name}/{file}"


def _read_tar(url: str, caption_column: str) -> Iterator[Sample]:
    import fsspec  # comes with torch and lightning

    name = PurePosixPath(url.split("?")[0]).name
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        for stem, members in itertools.groupby(_members(tar), key=lambda member: member[0]):
            files = {suffix: content for _, suffix, content in members}
            image = next((content for suffix, content in files.items() if suffix in SUFFIXES), None)
            if image is None:
                image = BadFile("no picture", f"only {', '.join(files)}")
            yield Sample(f"{name}/{stem}", image, _caption(files, caption_column))


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, bytes | BadFile]]:
    """(stem, suffix, content) of the pictures and captions in a stream."""
    for member in tar:
        tar.members = []  # else every header of the shard stays in memory
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        suffix = suffix.lower()
        if not member.isfile() or not stem or suffix not in SUFFIXES | {"txt", "json"}:
            continue
        content = _content(tar.extractfile(member), member.size)
        yield (f"{folder}/{stem}" if folder else stem), suffix, content


def _read_range(path: Path, offset: int, size: int) -> bytes | BadFile:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return _content(file, size)
    except FileNotFoundError:
        return BadFile("missing file", str(path))
    except OSError as error:
        return BadFile("unreadable file", str(error))


def _content(file: IO[bytes], size: int) -> bytes | BadFile:
    if size > MAX_BYTES:
        return BadFile("too many bytes", f"{size:,}, the limit is {MAX_BYTES:,}")
    return file.read(size)


def _caption(files: dict[str, bytes | BadFile], column: str) -> bytes | str | BadFile | None:
    """From the .txt, or else from the .json, of a sample."""
    if "txt" in files:
        return files["txt"]
    record = files.get("json", b"{}")
    if isinstance(record, BadFile):
        return record
    try:
        row = json.loads(record)
    except ValueError as error:
        return BadFile("damaged caption", f"not JSON in UTF-8: {error}")
    value = row.get(column) if isinstance(row, dict) else None
    return value if isinstance(value, str) else None
