"""The pictures of a source in order, from any place on, less those that cannot be used or were seen before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from uae_lightning.data.dealing import Place
from uae_lightning.data.images import BadFile
from uae_lightning.data.sources import Indexed, Sample, Source, Streamed, key_bytes
from uae_lightning.prepare.near_duplicates import SeenPictures
from uae_lightning.prepare.pictures import HashOf, Prepared, prepare

Row = dict[str, Any]  # what becomes of one picture; see `writer`
Item = TypeVar("Item")


class Reading:
    """Part `part` of `parts` (1 to parts) of a source: every n-th picture, or shard, or, where there are fewer shards
    than parts, every n-th picture of each shard."""

    def __init__(self, source: Source, part: int, parts: int) -> None:
        within = source.splittable and len(source) < parts
        self.source, self.split = source, (part - 1, parts) if within else (0, 1)
        self.units = range(len(source)) if within else range(part - 1, len(source), parts)

    @property
    def total(self) -> int | None:
        """Pictures; None where nobody knows before they are read."""
        return None if self.source.splittable else len(self.units)

    def samples(self, place: Place) -> Iterator[tuple[Place, Sample]]:
        """(the place behind it, sample) from `place` on: units finished, samples used of the next."""
        first, used = place
        for number in range(first, len(self.units)):
            for count, sample in enumerate(self.source.read_from(used, self.units[number], *self.split), used + 1):
                yield (number, count), sample
            used = 0


@dataclass
class Batch:
    """Samples read in one go; `behind` is the place behind the last."""

    behind: Place | None = None
    settled: list[Row] = field(default_factory=list)  # of pictures that need no caption
    rows: list[Row] = field(default_factory=list)  # of those that do
    pictures: list[Prepared] = field(default_factory=list)


def batches(
    samples: Iterator[tuple[Place, Sample]],
    number: int,
    size: int,
    max_pixels: int,
    seen: SeenPictures,
    hash_of: HashOf,
) -> Iterator[Batch]:
    """The samples of shard `number`, `size` pictures to caption at a time; those are added to `seen` by their hash."""
    batch = Batch()
    for index, (behind, sample) in enumerate(samples):
        batch.behind, row = behind, {"name": name(number, index), "key": sample.key}
        try:
            picture = prepare(sample, max_pixels, hash_of)
        except BadFile as error:
            batch.settled.append(row | {"status": "skipped", "reason": error.reason, "detail": error.detail[:300]})
            continue
        if match := seen.find(picture.hash, picture.digest):
            reason = "exact duplicate" if match.exact else "near-duplicate"
            batch.settled.append(row | {"status": "dropped", "reason": reason, "of": name(*unpack(match.place))})
            continue
        seen.add(picture.hash, picture.digest, pack(number, index))
        batch.rows.append(row | {"hash": f"{picture.hash:016x}", "digest": f"{picture.digest:016x}", "sample": sample})
        batch.pictures.append(picture)
        if len(batch.pictures) == size:
            yield batch
            batch = Batch()
    if batch.behind:
        yield batch


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the next is made in a thread while this one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def name(number: int, index: int) -> str:
    """The name, in the new set, of picture `index` of shard `number`: no dot, which would end it in a tar."""
    return f"{number:06d}_{index:06d}"


def pack(number: int, index: int) -> int:
    return number << 32 | index


def unpack(place: int) -> tuple[int, int]:
    return place >> 32, place & (1 << 32) - 1


def fingerprint(source: Indexed | Streamed) -> str:
    """Of the names of the pictures (of shards: of the shards), in order."""
    digest = hashlib.blake2b(digest_size=8)
    for key in source.keys():
        digest.update(key_bytes(key) + b"\0")
    return digest.hexdigest()
