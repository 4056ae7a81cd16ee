"""Pictures and captions -> shards.

Samples are known by their content: what lies in a whole shard is not computed again, so a run that was killed goes on
with the sample behind its last shard. Shards end where a batch ends: the second run makes the batches that the first
would have made, and thereby the same shards, byte for byte. In memory: the samples of one shard, and a digest of each
sample of the cache and of the pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uae_lightning.data.cache_shards import SUFFIX, Entry, Header, contents, shards_in, write_shard
from uae_lightning.data.dealing import parts_for
from uae_lightning.data.image_text import ImageTextData, Preparation, digest, image_bytes
from uae_lightning.data.images import BadFile
from uae_lightning.data.skipped import SkippedFiles, Tally
from uae_lightning.data.sources import Sample, Source
from uae_lightning.files import PARTIAL
from uae_lightning.prepare.part import Part
from uae_lightning.terminal.progress import Progress


@dataclass
class Counts:
    """Of one pass over the data: read = kept + duplicates + held_out + skipped."""

    read: int = 0
    kept: int = 0  # now in the cache
    computed: int = 0  # of the kept; the others were in it before
    duplicates: int = 0  # of a kept picture with the same caption, byte for byte
    held_out: int = 0  # pictures of the validation set
    skipped: int = 0
    skipped_by_reason: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    control_texts: int = 0  # captions computed now that hold control tokens, which were read as text
    left_over: int = 0  # samples in the cache that the pass has not met: removed from the data, or changed since

    def add(self, tally: Tally) -> None:
        self.read += tally.kept + tally.held_out + len(tally.skipped)
        self.held_out += tally.held_out
        self.skipped += len(tally.skipped)
        self.skipped_by_reason.update(row["reason"] for row in tally.skipped)
        self.converted.update(tally.converted)


@dataclass
class Prepared:
    """What a worker hands over of one sample."""

    tally: Tally
    content: bytes = b""  # 32, as in `Entry`; empty where the sample is held out or cannot be used
    key: str = ""
    caption: str = ""
    pixels: Tensor | None = None  # [3, S, S] uint8; None where the cache has the sample
    error: Exception | None = None


Compute = Callable[[list[Prepared]], list[Entry]]


def fill(folder: Path, data: ImageTextData, part: Part, header: Header, compute: Compute, shard_bytes: int) -> Counts:
    """One pass over a part of the data: what the folder does not have is computed and written.

    Raises:
        UsageError: more of the data than `max_skipped` cannot be used.
        ValueError: a shard cannot be written; those before it stay.
    """
    before = {content for shard in shards_in(folder) for content in contents(shard)}
    pictures = _Pictures(data.source, data.preparation, data.held_out_digests(), frozenset(before), part)
    listed = folder / f"skipped{part.name}.jsonl"
    listed.unlink(missing_ok=True)  # of an earlier pass over the same data
    skipped = SkippedFiles(data.max_skipped, data.source.name, listed)
    counts, met = Counts(), set()
    with (
        _Shards(folder, part, header, shard_bytes) as shards,
        Progress(pictures.total, "picture", f"cache{part.name}") as bar,
    ):
        waiting: list[Prepared] = []
        for one in _loaded(pictures, data.num_workers):
            bar.update(one.tally.kept + one.tally.held_out + len(one.tally.skipped))
            counts.add(one.tally)
            skipped.add(one.tally)
            if not one.content:
                continue
            if one.content in met:
                counts.duplicates += 1
                continue
            met.add(one.content)
            counts.kept += 1
            if one.pixels is not None:
                waiting.append(one)
            if len(waiting) == data.batch_size:
                shards.add(compute(waiting))
                counts.computed, waiting = counts.computed + data.batch_size, []
        if waiting:
            shards.add(compute(waiting))
            counts.computed += len(waiting)
    counts.left_over = len(before - met) if part.of == 1 else 0
    return counts


def _loaded(pictures: _Pictures, workers: int) -> Iterator[Prepared]:
    for one in DataLoader(pictures, batch_size=None, num_workers=workers):
        if one.error:
            raise one.error
        yield one


@dataclass
class _Pictures(IterableDataset):
    """Each sample of the part, in an order that depends on the number of workers alone."""

    source: Source
    preparation: Preparation
    held_out: frozenset[bytes]
    before: frozenset[bytes]  # in the cache: not to be decoded
    part: Part

    @property
    def total(self) -> int | None:
        """Samples; None where nobody knows before they are read."""
        return None if self.source.splittable else len(range(self.part.number - 1, len(self.source), self.part.of))

    def __iter__(self) -> Iterator[Prepared]:
        try:
            for sample in self._samples():
                yield self._prepared(sample)
        except (ValueError, OSError) as error:  # sent, not raised: a worker's exception arrives as a traceback in text
            yield Prepared(Tally(), error=error)

    def _samples(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        pieces = parts_for(len(self.source), self.part.of * workers) if self.source.splittable else 1
        units = range(self.part.number - 1, len(self.source) * pieces, self.part.of)
        for unit in units[number::workers]:
            yield from self.source.read(*divmod(unit, pieces), pieces)

    def _prepared(self, sample: Sample) -> Prepared:
        try:
            data = image_bytes(sample)
            picture = digest(data)
            if picture in self.held_out:
                return Prepared(Tally(held_out=1))
            caption, without = self.preparation.caption(sample)
            content = picture + digest(caption.encode())
            if content in self.before:
                return Prepared(Tally(kept=1), content)
            pixels, converted = self.preparation.pixels(data)
        except BadFile as error:
            tally = Tally()
            tally.skip(self.source.name, sample.key, error)
            return Prepared(tally)
        return Prepared(Tally(kept=1, converted=Counter(converted + without)), content, sample.key, caption, pixels)


class _Shards:
    """Collects samples until they fill a shard; the last one is written when the `with` ends without an error."""

    def __init__(self, folder: Path, part: Part, header: Header, size: int) -> None:
        self.folder, self.stem, self.header, self.size = folder, f"cache{part.name}", header, size
        for partial in folder.glob(f"{self._name('[0-9]' * 6)}{PARTIAL}"):  # of a killed run
            partial.unlink()
        taken = [int(path.stem[-6:]) for path in folder.glob(self._name("[0-9]" * 6))]
        self.number = max(taken, default=-1) + 1
        self.entries: list[Entry] = []

    def _name(self, number: str) -> str:
        return f"{self.stem}-{number}{SUFFIX}"

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None and self.entries:
            self._write()

    def add(self, batch: list[Entry]) -> None:
        self.entries += batch
        if sum(entry.size for entry in self.entries) >= self.size:
            self._write()

    def _write(self) -> None:
        path = self.folder / self._name(f"{self.number:06d}")
        try:
            write_shard(path, self.entries, self.header)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}): make room and give the same command again; what lies in "
                "whole shards is not computed again"
            ) from error
        self.entries, self.number = [], self.number + 1
