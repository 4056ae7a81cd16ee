"""The folder of a cache: what in it a cache wrote, and who may write to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from uae_lightning.data.cache_shards import SHARD, SUFFIX, foreign_file, shards_in, written_by_cache
from uae_lightning.parallel.locking import locked
from uae_lightning.prepare.part import Part
from uae_lightning.usage import UsageError

OWN = re.compile(rf"({SHARD.pattern}|(report|skipped)(-\d+of\d+)?\.jsonl?)(\.partial)?")


@contextmanager
def claimed(folder: Path, part: Part) -> Iterator[None]:
    """Nobody else writes this part of the cache; where there is one part only, nobody writes any.

    Raises:
        UsageError: the folder holds what no cache wrote.
        ValueError: somebody else is writing.
    """
    if folder.exists():
        refuse_foreign(folder)
    with ExitStack() as locks:
        if part.of > 1:
            places = [folder / f".part{part.name}"]
        else:
            places = [folder, *folder.glob(".part-*")]
        for place in places:
            locks.enter_context(locked(place, f"the cache {folder}"))
        yield


def refuse_foreign(folder: Path) -> None:
    """Raises UsageError where the folder has safetensors that are no shards or, where it has no shard, anything at all
    that is not of a cache."""
    if not folder.is_dir():
        raise UsageError(f"--to {folder} is a file: name a folder")
    names = {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}
    foreign = sorted(name for name in names if not OWN.fullmatch(name))
    if any(map(SHARD.fullmatch, names)):
        foreign = [name for name in foreign if name.endswith(SUFFIX)]
    if foreign:
        raise foreign_file(folder / foreign[0])


def clear(folder: Path) -> None:
    """Removes the shards of a cache of any version, damaged ones too.

    Raises:
        UsageError: one is a shard by its name alone; nothing is removed.
    """
    for path in shards_in(folder):
        try:
            with safe_open(path, "pt") as shard:
                own = written_by_cache(shard.metadata() or {})
        except SafetensorError:  # damaged
            own = True
        if not own:
            raise foreign_file(path)
    for path in shards_in(folder):
        path.unlink()
