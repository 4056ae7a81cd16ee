"""The set on disk: a shard and its record are whole or not there, and all else is made from the records.

FOLDER/
  000000.tar ...            NAME.jpg (or .png, .webp), NAME.txt, NAME.json of each picture kept; none where none is
  records/000000.jsonl ...  written after the shard: its presence says that the shard is done. The first line says how
                            far it read, each other line what became of one picture
  settings.json             with what the set was begun
  captions.jsonl dropped.jsonl skipped.jsonl report.json     written at the end, from the records
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from uae_lightning.data.dealing import Place
from uae_lightning.files import PARTIAL, replacing
from uae_lightning.parallel.locking import LOCK, locked
from uae_lightning.prepare.caption_reading import Row
from uae_lightning.usage import UsageError

SETTINGS = "settings.json"
LISTS = {  # file -> status of the pictures in it, and what it says of each
    "captions.jsonl": ("kept", ("image", "offset", "bytes", "caption", "words", "name", "key")),
    "dropped.jsonl": ("dropped", ("key", "reason", "caption", "of", "name")),
    "skipped.jsonl": ("skipped", ("source", "key", "reason", "detail")),  # as `data.skipped` lists them
}


class Shard:
    """One that is being written, by `writing`; whoever fills it appends to `rows` and sets `behind`."""

    def __init__(self, folder: Path, number: int, files: ExitStack) -> None:
        self.folder, self.number = folder, number
        self.rows: list[Row] = []
        self.behind: Place | None = None
        self._files, self._tar = files, None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number:06d}.tar"

    def add(self, name: str, picture: bytes, suffix: str, caption: str, provenance: dict) -> tuple[int, int]:
        """Writes a sample; returns where in the tar the picture begins, and its bytes."""
        if self._tar is None:  # a shard without samples is not written
            partial = self._files.enter_context(replacing(self.path))
            self._tar = self._files.enter_context(tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT))
        start = self._tar.offset + tarfile.BLOCKSIZE  # behind the header
        texts = {"txt": caption.encode(), "json": json.dumps(provenance).encode()}
        for kind, content in ({suffix: picture} | texts).items():
            header = tarfile.TarInfo(f"{name}.{kind}")  # no date, no owner: the same set is the same bytes
            header.size = len(content)
            self._tar.addfile(header, io.BytesIO(content))
        return start, len(picture)


@contextmanager
def writing(folder: Path, number: int) -> Iterator[Shard]:
    """A shard to fill; when the block ends, the shard and then its record are there. An error leaves neither."""
    with ExitStack() as files:
        shard = Shard(folder, number, files)
        yield shard
    if not any(row["status"] == "kept" for row in shard.rows):
        shard.path.unlink(missing_ok=True)  # of a killed run with another batch size
    lines = [{"behind": shard.behind, "read": len(shard.rows)}, *sorted(shard.rows, key=lambda row: row["name"])]
    with replacing(record_path(folder, number)) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass(frozen=True)
class Record:
    """Of a shard that is done."""

    behind: Place
    read: int
    rows: list[Row]


def record_path(folder: Path, number: int) -> Path:
    return folder / "records" / f"{number:06d}.jsonl"


def records(folder: Path) -> Iterator[Record]:
    """Of all shards that are done, in order.

    Raises:
        FileNotFoundError: a shard is gone whose record is there.
        ValueError: a record is damaged.
    """
    for number in itertools.count():
        path = record_path(folder, number)
        if not path.exists():
            return
        record = read_record(path)
        shard = folder / f"{number:06d}.tar"
        if any(row["status"] == "kept" for row in record.rows) and not shard.exists():
            raise FileNotFoundError(f"{shard} was written and is gone: put it back, or start again in another --to")
        yield record


def read_record(path: Path) -> Record:
    try:
        head, *rows = map(json.loads, path.read_text().splitlines())
        record = Record(tuple(head["behind"]), head["read"], rows)
        if len(rows) != record.read or not all(isinstance(row["status"], str) for row in rows):
            raise ValueError("it does not hold as many pictures as it says")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): put it back, or start again in another --to") from error


def write_lists(folder: Path, source: str) -> dict[str, int]:
    """captions.jsonl, dropped.jsonl and skipped.jsonl; returns how many pictures of each status they hold."""
    counts = dict.fromkeys((status for status, _ in LISTS.values()), 0)
    with ExitStack() as files:
        lists = {}
        for name, (status, fields) in LISTS.items():
            partial = files.enter_context(replacing(folder / name))
            lists[status] = (files.enter_context(partial.open("w")), fields)
        for record in records(folder):
            for row in record.rows:
                row["source"] = source
                file, fields = lists[row["status"]]
                file.write(json.dumps({field: row[field] for field in fields if field in row}) + "\n")
                counts[row["status"]] += 1
    return counts


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder is there and nobody else writes to it until the block ends, however it ends.

    Raises:
        UsageError: it holds what is not of this command.
        ValueError: somebody does.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--to {folder} is a file: name a folder")
    names = {entry.name for entry in os.scandir(folder)} if folder.exists() else set()
    if SETTINGS not in names and names - {LOCK, SETTINGS + PARTIAL}:
        raise UsageError(f"--to {folder} holds files that `uae caption-data` did not write: name a new folder")
    with locked(folder, f"the set {folder}"):
        for left in itertools.chain(folder.glob("*" + PARTIAL), folder.glob("records/*" + PARTIAL)):
            left.unlink()  # of a killed process
        yield
