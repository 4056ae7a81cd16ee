"""Where pictures with captions lie: a folder, a JSONL; in files of their own shards, saved `datasets` data sets and
those of the hub.

A source is a list of units: single pictures, or shards, each a run of samples that can only be read in order.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae_lightning.data.chat_rows import from_chat, is_chat
from uae_lightning.data.images import SUFFIXES, BadFile, opened, read_file
from uae_lightning.data.tars import content_of
from uae_lightning.usage import UsageError

TEXTS = ("txt", "json")  # of captions beside pictures; the first that is there counts
SCANNED = 10  # samples of shards looked at for each one held out
RANGE = frozenset(("offset", "bytes"))  # where in a file a picture lies


@dataclass(frozen=True)
class Sample:
    """One picture as it lies in its source; nothing is decoded yet."""

    key: str  # the same for the same picture in every run
    image: bytes | Path | BadFile  # BadFile: the source itself is damaged there
    caption: bytes | str | tuple[str, ...] | BadFile | None  # several of one picture are a tuple
    others: int = 0  # pictures of the same name that are left out
    prompt: str | None = None  # a terse one, of which the caption is the complete one
    metadata: dict[str, Any] | None = None  # other columns, for rewards; None: none are read


@dataclass(frozen=True)
class Columns:
    """Names of what a row of a JSONL or of a `datasets` data set holds, and whether it must hold a caption. Prompts and
    metadata are read where their columns are named."""

    image: str = "image"
    caption: str = "caption"
    captions_needed: bool = False
    prompt: str | None = None
    metadata: tuple[str, ...] = ()

    def caption_in(self, row: dict[str, Any]) -> str | tuple[str, ...] | None:
        """None where it is not there, or neither a text nor a list of texts."""
        value = row.get(self.caption)
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return tuple(value)
        return value if isinstance(value, str) else None

    def metadata_in(self, row: dict[str, Any]) -> dict[str, Any] | None:
        return {name: row[name] for name in self.metadata if name in row} if self.metadata else None

    def of_chat(self, row: Any) -> Any:
        """A row that is a chat (`chat_rows`) as one of columns, any other as it is; raises ValueError."""
        if not is_chat(row) or self.image in row:
            return row
        chat = from_chat(row)
        texts = {self.caption: chat["caption"]} | ({} if self.prompt is None else {self.prompt: chat["prompt"]})
        said = {name: text for name, text in texts.items() if text and row.get(name) is None}
        return {self.image: chat["image"]} | row | said

    def prompt_in(self, row: dict[str, Any]) -> str | None:
        """None where it is not read, not there, or no text."""
        value = row.get(self.prompt) if self.prompt is not None else None
        return value if isinstance(value, str) else None


class Source(ABC):
    splittable = False  # a unit is many samples

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out: Counter[str] = Counter()  # suffixes of files that are neither pictures nor captions

    def without(self) -> str:
        """`left_out` in words."""
        counts = self.left_out.most_common()
        return ", ".join(f"{f'.{suffix}' if suffix else 'without suffix'} ({count})" for suffix, count in counts)

    @abstractmethod
    def __len__(self) -> int:
        """Units."""

    @abstractmethod
    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        """The samples of a unit, or of the given part of it."""

    def read_from(self, start: int, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        """What `read` gives, less the first `start`; for sources that need not read those."""
        return itertools.islice(self.read(unit, part, parts), start, None)

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


class Streamed(Source):
    """Every unit is a shard: many samples, in order."""

    splittable = True

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Of the shards."""

    def by_hash(self, count: int) -> Iterator[Sample]:
        every = itertools.chain.from_iterable(map(self.read, range(len(self))))
        scanned = itertools.islice(every, SCANNED * count)
        return iter(heapq.nsmallest(count, scanned, key=lambda sample: key_hash(sample.key)))


class Folder(Indexed):
    """Pictures anywhere below a folder, the caption of `a/b.jpg` in `a/b.txt`, or several in `a/b.json`, a list."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        super().__init__(str(folder))
        self.folder, self.columns = folder, columns
        files = set(_files_below(folder))
        self.paths = [file for file in sorted(files) if _suffix(file) in SUFFIXES or file.endswith("/")]
        stems = {os.path.splitext(path)[0] for path in self.paths}
        texts = {file for file in files if _suffix(file) in TEXTS and os.path.splitext(file)[0] in stems}
        captions = bool(texts)
        others = files - set(self.paths) - texts
        self.left_out = Counter(_suffix(file) for file in others if _suffix(file) != "txt")
        if not self.paths:
            raise UsageError(f"{folder} has no pictures: a picture's name ends in one of {', '.join(sorted(SUFFIXES))}")
        if columns.prompt is not None:
            raise UsageError(
                f"{folder}: a folder of pictures has no prompts: write a JSONL with {columns.image}, {columns.caption} "
                f"and {columns.prompt}, or leave data.init_args.prompt_column out"
            )
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
        key, path = self.paths[unit], self.folder / self.paths[unit]
        if key.endswith("/"):
            return Sample(key, BadFile("unreadable folder", str(path)), None)
        files: dict[str, bytes | BadFile] = {}
        for suffix in TEXTS:
            try:
                files[suffix] = read_file(path.with_suffix(f".{suffix}"))
            except BadFile as error:
                files |= {} if error.reason == "missing file" else {suffix: error}
            if files:
                break
        return Sample(key, path, texts_of(files, self.columns)[0])


class JsonLines(Indexed):
    """A row per picture; paths are relative to the file. Eight bytes of memory per row: where it begins.

    A row with `offset` and `bytes` is of a picture within a file, such as a shard (`uae caption-data` writes them).
    """

    def __init__(self, file: Path, columns: Columns) -> None:
        super().__init__(str(file))
        self.file, self.columns = file, columns
        self.offsets = array("q")
        with_caption = with_prompt = 0
        without = set(columns.metadata)
        with file.open("rb") as lines:
            offset = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = self._row(line, number)
                    with_caption += columns.caption in row
                    with_prompt += columns.prompt in row
                    without -= row.keys()
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
        if columns.prompt is not None and not with_prompt:
            raise UsageError(
                f"{file}, line 1: no {columns.prompt!r}, nor in any later line; name the column that holds prompts "
                "with data.init_args.prompt_column"
            )
        if without:
            raise UsageError(
                f"{file}, line 1: no {min(without)!r}, nor in any later line: correct data.init_args.metadata_columns"
            )

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        at, columns = f"{self.file}, line {number}", self.columns
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{at}: not JSON in UTF-8 ({error}); write one JSON object per line") from error
        try:
            row = columns.of_chat(row)
        except ValueError as error:
            raise UsageError(f"{at}: {error}: correct it, or take the line out") from error
        if not isinstance(row, dict) or columns.image not in row:
            found = f"only {', '.join(map(repr, row))}" if isinstance(row, dict) and row else "no columns"
            raise UsageError(
                f"{at}: no {columns.image!r}, {found}; give each line the path of a picture under that name, or name "
                "the column that holds it with data.init_args.image_column"
            )
        for name, right in (
            (columns.image, isinstance(row[columns.image], str)),
            (columns.caption, row.get(columns.caption) is None or columns.caption_in(row) is not None),
        ):
            if not right:
                several = " or a list of strings" if name == columns.caption else ""
                raise UsageError(f"{at}: {name!r} must be a string{several}, got {json.dumps(row.get(name))[:60]}")
        for name in RANGE if row.keys() >= RANGE else ():
            if type(row[name]) is not int or not 0 <= row[name] < 2**63:
                raise UsageError(f"{at}: {name!r} must be a number of bytes, got {json.dumps(row[name])[:60]}")
        return row

    def _row_at(self, unit: int) -> dict[str, Any]:
        with self.file.open("rb") as lines:  # opened each time: a file position must not be shared by workers
            lines.seek(self.offsets[unit])
            return self.columns.of_chat(json.loads(lines.readline()))

    def __len__(self) -> int:
        return len(self.offsets)

    def keys(self) -> Iterator[str]:
        with self.file.open("rb") as lines:
            yield from (self._key(self.columns.of_chat(json.loads(line))) for line in lines if line.strip())

    def _key(self, row: dict[str, Any]) -> str:
        image = row[self.columns.image]
        return f"{image}@{row['offset']}" if row.keys() >= RANGE else image

    def sample(self, unit: int) -> Sample:
        row = self._row_at(unit)
        image = path = self.file.parent / row[self.columns.image]
        if row.keys() >= RANGE:
            image = _read_range(path, row["offset"], row["bytes"])
        columns = self.columns
        caption, prompt, metadata = columns.caption_in(row), columns.prompt_in(row), columns.metadata_in(row)
        return Sample(self._key(row), image, caption, prompt=prompt, metadata=metadata)


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key_bytes(key), digest_size=8).digest())


def key_bytes(key: str) -> bytes:
    try:
        return key.encode("utf-8", "surrogateescape")  # of names of files that are not in UTF-8
    except UnicodeEncodeError:
        return key.encode("utf-8", "surrogatepass")  # of JSON, where halves of pairs can stand


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _files_below(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Relative POSIX paths, those of folders that cannot be listed with a slash at the end; links to folders are
    followed unless in a circle; hidden files are left out."""
    seen |= {os.path.realpath(folder)}
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if not _is_folder(entry):
            yield entry.name
        elif os.path.realpath(entry.path) not in seen:
            try:
                below = list(_files_below(Path(entry.path), seen))
            except OSError:
                below = [""]
            yield from (f"{entry.name}/{file}" for file in below)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _read_range(path: Path, offset: int, size: int) -> bytes | BadFile:
    try:
        with opened(path) as file:
            file.seek(offset)
            return content_of(file, size)
    except BadFile as error:
        return error


Texts = tuple[bytes | str | tuple[str, ...] | BadFile | None, str | None, dict[str, Any] | None]


def texts_of(files: dict[str, bytes | BadFile], columns: Columns) -> Texts:
    """(caption, prompt, metadata) of a sample: the caption from the .txt, or else from the .json, an object in which
    prompt and metadata are too, or a list of captions."""
    if "txt" in files and columns.prompt is None and not columns.metadata:
        return files["txt"], None, None
    row: Any = files.get("json", b"{}")
    try:
        row = row if isinstance(row, BadFile) else json.loads(row)
    except (ValueError, RecursionError) as error:
        row = BadFile("damaged caption", f"not JSON in UTF-8: {error}")
    if isinstance(row, BadFile):
        return files.get("txt", row), None, columns.metadata_in({})
    if isinstance(row, list):
        row = {columns.caption: row}
    row = row if isinstance(row, dict) else {}
    return files.get("txt", columns.caption_in(row)), columns.prompt_in(row), columns.metadata_in(row)
