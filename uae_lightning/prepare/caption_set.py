"""The work itself: read, caption, filter, write, shard after shard."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uae_lightning.data.dealing import Place
from uae_lightning.data.images import BadFile
from uae_lightning.data.skipped import SkippedFiles, Tally
from uae_lightning.files import write_json
from uae_lightning.prepare.caption_reading import Reading, Row, ahead, batches, pack
from uae_lightning.prepare.caption_report import Counts
from uae_lightning.prepare.caption_writer import Record, Shard, records, write_lists, writing
from uae_lightning.prepare.filters import Caption, CaptionFilter, count_words
from uae_lightning.prepare.near_duplicates import SeenPictures
from uae_lightning.prepare.pictures import HashOf, Prepared, file_to_keep
from uae_lightning.terminal.progress import Progress

Captions = Callable[[list[Image.Image]], list[Caption]]


@dataclass
class CaptionData:
    """Goes on where the folder stands, or begins.

    Args:
        reading: the pictures.
        load_captioner: called when the first caption is needed.
        caption_filter: which captions are kept.
        folder: of the set.
        model: what NAME.json calls the captioner.
        duplicate_bits: of `SeenPictures`.
        load_hash: gives what tells whether pictures are alike; called once, before the first is read.
        batch_size: pictures captioned at a time.
        shard_size: pictures read for a shard.
        max_pixels: area to which pictures are scaled down before they are captioned.
        max_skipped: share of unusable files above which `run` raises.
        seed: of sampled captions; each shard has its own, so that a resumed run draws what the first would have.
    """

    reading: Reading
    load_captioner: Callable[[], Captions]
    caption_filter: CaptionFilter
    folder: Path
    model: str
    duplicate_bits: int | None
    load_hash: Callable[[], HashOf]
    batch_size: int
    shard_size: int
    max_pixels: int
    max_skipped: float
    seed: int

    def run(self) -> Counts:
        """Raises UsageError where too many files cannot be used, and what the captioner raises."""
        self.counts, self.seen = Counts(), SeenPictures(self.duplicate_bits)
        listed = self.folder / "skipped.jsonl"
        listed.unlink(missing_ok=True)  # begun again from the records; a killed process may have left half a line
        self.skipped = SkippedFiles(self.max_skipped, self.reading.source.name, listed)
        place, number = self._resume()
        samples = self.reading.samples(place)
        first = next(samples, None)
        if first is not None:
            self.captioner, self.hash_of  # noqa: B018  loaded before the bar appears, and its clock starts
        with Progress(self.reading.total, "picture", "caption-data", done=self.counts.seen) as self.bar:
            while first is not None:
                self._shard(number, itertools.chain([first], itertools.islice(samples, self.shard_size - 1)))
                first, number = next(samples, None), number + 1
        self.counts.check(self.reading.total, write_lists(self.folder, self.reading.source.name))
        write_json(self.folder / "report.json", self.counts.as_dict())
        return self.counts

    @functools.cached_property
    def captioner(self) -> Captions:
        return self.load_captioner()

    @functools.cached_property
    def hash_of(self) -> HashOf:
        return self.load_hash()

    def _resume(self) -> tuple[Place, int]:
        """Takes the finished shards into account; returns where to go on, and the number of the next shard."""
        place, number = (0, 0), 0
        for number, record in enumerate(records(self.folder), 1):
            place = record.behind
            self._remember(record, number - 1)
        return place, number

    def _remember(self, record: Record, number: int) -> None:
        self.counts.seen += record.read
        for row in record.rows:
            self.counts.add(row)
            self._count_skipped(row)
            if "hash" in row:
                index = int(row["name"].rpartition("_")[2])
                self.seen.add(int(row["hash"], 16), int(row["digest"], 16), pack(number, index))

    def _shard(self, number: int, samples: Iterator) -> None:
        read = batches(samples, number, self.batch_size, self.max_pixels, self.seen, self.hash_of)
        with writing(self.folder, number) as shard, seeded(self.seed, number):
            for batch in ahead(read):
                shard.behind = batch.behind
                for row in batch.settled:
                    self._settle(shard, row)
                captions = self.captioner([picture.image for picture in batch.pictures]) if batch.pictures else []
                for row, picture, caption in zip(batch.rows, batch.pictures, captions, strict=True):
                    self._settle(shard, self._judged(shard, row, picture, caption))
                self.bar.set_postfix(kept=self.counts.kept, dropped=self.counts.dropped.total())

    def _judged(self, shard: Shard, row: Row, picture: Prepared, caption: Caption) -> Row:
        """The row with what becomes of the caption; a good one is written."""
        original = row.pop("sample").image
        row["caption"] = caption.text
        if reason := self.caption_filter.fault(caption):
            return row | {"status": "dropped", "reason": reason}
        suffix, content, rewritten = file_to_keep(picture)
        words = count_words(caption.text)
        provenance = {
            "source": self.reading.source.name, "key": row["key"], "model": self.model, "words": words,
            "converted": picture.converted if rewritten else [],
        }  # fmt: skip
        offset, size = shard.add(row["name"], content, suffix, caption.text, provenance)
        if isinstance(original, Path):
            place = {"image": relpath(original.resolve(), self.folder.resolve())}
        else:  # the picture is a file of its own in the shard only
            place = {"image": shard.path.name, "offset": offset, "bytes": size}
        return row | place | {
            "status": "kept", "words": words, "rewritten": rewritten, "converted": picture.converted,
            "control": caption.control,
        }  # fmt: skip

    def _settle(self, shard: Shard, row: Row) -> None:
        shard.rows.append(row)
        self.counts.seen += 1
        self.counts.add(row)
        self._count_skipped(row)
        self.bar.update()

    def _count_skipped(self, row: Row) -> None:
        tally = Tally(kept=int(row["status"] != "skipped"))
        if not tally.kept:
            tally.skip(self.reading.source.name, row["key"], BadFile(row["reason"], row["detail"]))
        self.skipped.add(tally)


@contextmanager
def seeded(seed: int, number: int) -> Iterator[None]:
    """Torch draws what belongs to shard `number`; afterwards it goes on as before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        yield
