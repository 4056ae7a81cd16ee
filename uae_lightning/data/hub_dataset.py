"""Data sets of the hub, read as they come over the network: nothing is downloaded before it is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import fsspec  # comes with torch and lightning

from uae_lightning.data.dataset_rows import chosen_columns, row_sample
from uae_lightning.data.images import MAX_BYTES, BadFile
from uae_lightning.data.shards import persistent
from uae_lightning.data.sources import Columns, Sample, Streamed
from uae_lightning.paths import HUB_ID
from uae_lightning.usage import UsageError

HUB = "hub:"
CHOICES = ("split", "subset", "revision")
FEW_FILES = 64  # of parquet, which are divided into their row groups: that takes a request for each file
AT_A_TIME = 16  # rows
ARCHIVES = ("zip://", "tar://", "gzip://")  # of fsspec: file://PATH::hf://... would be a file of this machine
DAMAGE = (ValueError, TypeError, KeyError, IndexError)  # pyarrow's errors of content are ValueErrors


class HubDataset(Streamed):
    """`hub:OWNER/NAME?split=train&subset=NAME&revision=COMMIT`, or `hub:FOLDER` of a folder laid out as such a
    repository (parquet, JSONL with pictures beside it, ...): what `datasets.load_dataset(..., streaming=True)` reads.

    Every unit is a shard: a file, or, of few files of parquet, a row group. Where a stream stands is the shard and how
    many of its rows are used, as in `IterableDataset.state_dict`; unlike that it can be dealt anew to another number of
    ranks. A resumed stream reads its shard again up to there. Of parquet a worker holds a row group in memory. A row is
    a picture with its columns, or a chat.

    Pictures come from the repository alone: rows that give an address elsewhere, or a place on their author's machine,
    are skipped.
    """

    def __init__(self, name: str, columns: Columns, option: str = "path") -> None:
        super().__init__(name)
        place, choices = parsed(name, option)
        self.columns, self.folder = columns, Path(place).expanduser()
        self.repository = None if self.folder.is_dir() else place
        self.revision = choices.get("revision", "main")
        rows = opened(name, place if self.repository else str(self.folder), choices)
        if rows.column_names is None:
            raise UsageError(f"{name} says of no column what it holds: give its rows as parquet or JSONL")
        if rows.num_shards < FEW_FILES:
            rows = divided(rows)
        self.rows = chosen_columns(rows, columns, name).with_format("arrow")

    def __len__(self) -> int:
        return self.rows.num_shards

    def keys(self) -> Iterator[str]:
        return (f"{self.name}#{unit}" for unit in range(len(self)))

    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        return self.read_from(0, unit, part, parts)

    def read_from(self, start: int, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        first = part + start * parts
        samples = persistent(partial(self._behind, unit), f"{self.name}#{unit}", DAMAGE, first)
        return itertools.islice(samples, 0, None, parts)

    def _behind(self, unit: int, done: int) -> Iterator[Sample]:
        shard = self.rows.shard(num_shards=len(self), index=unit).skip(done)
        tables = shard.iter(batch_size=AT_A_TIME)  # `iter(shard)` would deal the shard to the workers once more
        rows = (table.slice(row, 1) for table in tables for row in range(len(table)))
        try:
            for number, row in enumerate(rows, done):
                yield self._sample(f"{unit:05d}/{number:07d}", row)
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # pyarrow's, of content; those of networks are others
                raise ValueError(str(error)) from error
            raise

    def _sample(self, key: str, row: Any) -> Sample:
        try:
            values = row.to_pylist()[0]
        except ValueError as error:  # text that is not in UTF-8
            return Sample(key, BadFile("damaged row", str(error)), None)
        return row_sample(key, values, self.columns, self._picture)

    def _picture(self, path: str) -> bytes | Path | BadFile:
        """What lies at a path of this repository: one within it, or as `datasets` calls its files, in archives too."""
        if self.repository is None:
            return self.folder / path
        own = f"hf://datasets/{self.repository}@"
        if "://" not in path and not path.startswith("/"):
            path = f"{own}{self.revision}/{path}"
        *archives, inside = path.split("::")
        outside = not inside.startswith(own) or ".." in inside.split("/")
        if outside or not all(link.startswith(ARCHIVES) for link in archives):
            return BadFile("no picture", f"{path} is not in the repository")
        try:
            with fsspec.open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return BadFile("missing file", path)
        except ValueError as error:  # of a path that can be none
            return BadFile("unreadable file", str(error))
        return content if len(content) <= MAX_BYTES else BadFile("too many bytes", f"the limit is {MAX_BYTES:,}")


def parsed(name: str, option: str) -> tuple[str, dict[str, str]]:
    """(OWNER/NAME or a folder, what is chosen of it); raises UsageError."""
    place, _, query = name.removeprefix(HUB).partition("?")
    choices = dict(parse_qsl(query, keep_blank_values=True))
    if wrong := [key for key, value in choices.items() if key not in CHOICES or not value]:
        raise UsageError(f"data.init_args.{option} {name}: {wrong[0]!r} is none of {', '.join(CHOICES)} with a value")
    if not Path(place).expanduser().is_dir() and not HUB_ID.fullmatch(place):
        raise UsageError(
            f"data.init_args.{option} {name} is neither a folder here nor the name of a data set of the hub, "
            f"{HUB}OWNER/NAME: correct it"
        )
    return place, choices


def opened(name: str, place: str, choices: dict[str, str]) -> Any:
    """The `IterableDataset`; raises UsageError."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{name} is read by the package `datasets`, which is not installed: pip install 'uae-lightning[data]'"
        ) from error
    from datasets.exceptions import DatasetNotFoundError

    subset, split, revision = choices.get("subset"), choices.get("split", "train"), choices.get("revision")
    try:
        return datasets.load_dataset(place, subset, split=split, revision=revision, streaming=True)
    except DatasetNotFoundError as error:
        raise UsageError(
            f"{name} is no data set that this account may read: correct the name; if it is gated or private, accept "
            f"its terms at https://huggingface.co/datasets/{place} and `hf auth login` (or set HF_TOKEN)"
        ) from error
    except ConnectionError as error:
        raise UsageError(
            f"{name}: the hub cannot be reached (HF_HUB_OFFLINE, or no connection): where there is one, "
            f"`hf download {place} --repo-type dataset --local-dir FOLDER`, and name {HUB}FOLDER"
        ) from error
    except Exception as error:  # of each format's own reader
        raise UsageError(
            f"{name} cannot be opened ({type(error).__name__}: {str(error)[:300]}): another of its parts is "
            f"{HUB}OWNER/NAME?split=SPLIT&subset=SUBSET&revision=REVISION"
        ) from error


def divided(rows: Any) -> Any:
    """Files of parquet into their row groups, if they can be read."""
    try:
        return rows.reshard()
    except DAMAGE:
        return rows
