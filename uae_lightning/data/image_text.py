"""Pictures of one's own, with captions or without, as a LightningDataModule."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from uae_lightning.data.dealing import Deal, Place, parts_for, shuffled_blocks, shuffled_unit
from uae_lightning.data.images import MAX_PIXELS, BadFile, read_file, read_picture, square
from uae_lightning.data.skipped import FILE, SkippedFiles, Tally
from uae_lightning.data.sources import Columns, Sample, Source, open_source
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

REPORTED_AT = 100  # skipped samples in a row after which a stream says so although it has no batch yet
PATIENCE = 20  # epochs without a picture that can be used, after which a stream gives up


class ImageTextData(L.LightningDataModule):
    """A folder of pictures, a JSONL, WebDataset shards or a saved `datasets` data set.

    Training is an endless stream, different on every rank: each dataloader worker of each rank takes its turns of the
    shuffled pictures (of the shuffled shards, then shuffled in blocks within a shard), so that each is read once per
    epoch by one of them. Batches are always full. A checkpoint holds the place of every worker of every rank: a resumed
    run goes on with the next picture, exactly; with another number of ranks or workers, what was left is dealt anew.

    Held-out pictures are those of smallest hash (of `validation_path`, or else of `path`); every rank gets its share of
    them, all ranks the same number of batches. What has the same bytes is never trained on, under whatever name. Of
    shards without `validation_path`, the first 10 samples for each one wanted are looked at.

    Files that cannot be used are skipped, and listed in `<default_root_dir>/skipped.jsonl` with the reason; totals are
    a warning when the run ends.

    Args:
        path: a folder (searched below too; captions in a .txt of the picture's name), a .jsonl, a .tar or a folder or
            pattern of them (`{000..127}.tar`; URLs too), or a folder written by `Dataset.save_to_disk`.
        resolution: side of the square pictures, that of the decoder; the shorter side is scaled, the longer cropped.
        batch_size: pictures per batch and device.
        require_captions: skip pictures without a caption; for decoder pre-training. Else the caption is "".
        random_crop: crop anywhere instead of in the middle.
        validation_path: where the held-out pictures come from instead, in any of the forms of `path`.
        validation_pictures: how many are held out; no fewer than there are ranks.
        validation_batch_size: pictures per validation batch and device, about: batches are made equal.
        shuffle_buffer: samples of a shard that are shuffled at a time; a worker holds as many files in memory.
        max_source_pixels: larger pictures are skipped, at most 178 million.
        max_skipped: share of unusable files above which the run stops.
        image_column, caption_column: names in a JSONL, a `datasets` data set or the .json of shards.
        num_workers: processes that decode, per device; 0 decodes in the training loop.
        seed: of the order, and of random crops.

    Raises:
        UsageError, FileNotFoundError: an option is wrong, or the data set has not the form it should have.
    """

    def __init__(
        self,
        path: str | list[str],
        resolution: int,
        batch_size: int = 8,
        require_captions: bool = False,
        random_crop: bool = False,
        validation_path: str | list[str] | None = None,
        validation_pictures: int = 64,
        validation_batch_size: int = 8,
        shuffle_buffer: int = 256,
        max_source_pixels: int = MAX_PIXELS,
        max_skipped: float = 0.05,
        image_column: str = "image",
        caption_column: str = "caption",
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name in ("resolution", "batch_size", "validation_pictures", "validation_batch_size", "shuffle_buffer"):
            if (value := locals()[name]) < 1:
                raise UsageError(f"data.init_args.{name} must be at least 1, got {value}")
        if not 0 < max_source_pixels <= 2 * MAX_PIXELS:
            raise UsageError(f"data.init_args.max_source_pixels must be 1 to {2 * MAX_PIXELS}, got {max_source_pixels}")
        if not 0 <= max_skipped <= 1:
            raise UsageError(f"data.init_args.max_skipped must be 0 to 1, got {max_skipped}")
        self.path, self.validation_path = path, validation_path
        self.columns = Columns(image_column, caption_column, require_captions)
        self.preparation = Preparation(resolution, max_source_pixels, require_captions, random_crop)
        self.batch_size, self.shuffle_buffer, self.seed = batch_size, shuffle_buffer, seed
        self.validation_pictures, self.validation_batch_size = validation_pictures, validation_batch_size
        self.max_skipped, self.num_workers = max_skipped, num_workers
        self._source: Source | None = None
        self._held_out: list[Sample] | None = None
        self._held_out_tally = Tally()
        self.skipped_files: SkippedFiles | None = None
        self._start_at(0, None)

    # ------------------------------------------------------------------------------------------------ what there is

    @property
    def source(self) -> Source:
        if self._source is None:
            self._source = open_source(self.path, self.columns)
            if self._source.left_out:
                names = ", ".join(f".{suffix} ({count})" for suffix, count in self._source.left_out.most_common())
                warnings.warn(f"{self._source.name}: files that are no pictures are left out: {names}", stacklevel=2)
        return self._source

    @property
    def held_out(self) -> list[Sample]:
        """The validation pictures, the same ones on every rank and in every run."""
        if self._held_out is None:
            self._held_out = self._choose_held_out()
        return self._held_out

    def _choose_held_out(self) -> list[Sample]:
        if self.validation_path is not None:
            source = open_source(self.validation_path, self.columns, "validation_path")
            samples, self._held_out_tally = chosen(source, self.validation_pictures, self.preparation)
            return samples
        samples, _ = chosen(self.source, self.validation_pictures, self.preparation)  # training counts the bad ones
        if len(samples) >= len(self.source) and not self.source.splittable:
            raise UsageError(
                f"holding out data.init_args.validation_pictures ({len(samples)}) of the {len(self.source)} pictures "
                f"of {self.source.name} leaves none to train on: lower it, or name others with "
                "data.init_args.validation_path"
            )
        return samples

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    # ------------------------------------------------------------------------------------------------ loaders

    def setup(self, stage: str) -> None:
        self._start_at(0, None)  # a checkpoint, if there is one, is read after this

    def train_dataloader(self) -> Iterable[Batch]:
        file = Path(self.trainer.default_root_dir) / FILE if self.trainer else None
        if file and self._rank()[0] == 0 and not self._first_batch:
            file.unlink(missing_ok=True)  # of an earlier run; the other ranks wait for this method before they read
        self.skipped_files = SkippedFiles(self.max_skipped, self.source.name, file)
        if self._rank()[0] == 0 and self.held_out:
            self.skipped_files.add(self._held_out_tally)
        return _TrainingBatches(self)

    def val_dataloader(self) -> DataLoader:
        rank, world = self._rank()
        batches = equal_batches(self.held_out, world, self.validation_batch_size)[rank]
        workers = min(self.num_workers, len(batches))
        return DataLoader(_HeldOut(batches, self.preparation), batch_size=None, num_workers=workers)

    def teardown(self, stage: str) -> None:
        files = self.skipped_files
        if files and files.reasons and self._rank()[0] == 0:
            warnings.warn(files.summary(), stacklevel=2)

    # ------------------------------------------------------------------------------------------------ training stream

    def training_batches(self) -> Iterator[Batch]:
        """From behind the last batch that was used, endless."""
        self._settle()
        self._reports.clear()
        rank, world = self._rank()
        workers = max(self.num_workers, 1)
        if self._deal is None:
            parts = parts_for(len(self.source), world * workers) if self.source.splittable else 1
            self._deal = Deal(world * workers, parts)
        self._deal = self._deal.redealt(world * workers)
        stream = _Stream(
            source=self.source,
            deal=self._deal,
            streams=[rank * workers + (self._first_batch + worker) % workers for worker in range(workers)],
            held_out=frozenset(digest(image_bytes(sample)) for sample in self.held_out),
            prepare=self.preparation,
            batch_size=self.batch_size,
            shuffle_buffer=self.shuffle_buffer,
            seed=self.seed,
        )
        for report in DataLoader(stream, batch_size=None, num_workers=self.num_workers):
            if self.skipped_files:
                self.skipped_files.add(report.tally)
            if report.error:
                raise report.error
            if report.batch is not None:
                self._reports.append((report.stream, report.place))
                yield report.batch

    def _settle(self) -> None:
        """Moves the places of this rank's streams behind the batches that were used; some are read ahead."""
        used = self._batches_used()
        while self._reports and self._first_batch < used:
            stream, place = self._reports.popleft()
            self._deal.places[stream] = place
            self._first_batch += 1

    def _batches_used(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.trainer else self._first_batch

    def _start_at(self, batches: int, deal: Deal | None) -> None:
        self._first_batch, self._deal = batches, deal
        self._reports: deque[tuple[int, Place]] = deque()  # of batches handed out since, in order

    def state_dict(self) -> dict[str, Any]:
        """All ranks must call it, as Lightning does when it writes a checkpoint: each knows its own streams only."""
        self._settle()
        state = {"batches": self._batches_used(), "units": len(self.source)}
        state["deal"] = self._deal.state_dict() if self._deal else None
        if self._deal and dist.is_available() and dist.is_initialized():
            everyone: list[list[Place]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyone, self._deal.places)
            each = len(self._deal.places) // len(everyone)
            state["deal"]["places"] = [
                place for rank, places in enumerate(everyone) for place in places[rank * each : (rank + 1) * each]
            ]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start_at(state["batches"], Deal(**state["deal"]) if state["deal"] else None)
        if (count := len(self.source)) != state["units"]:
            warnings.warn(
                f"{self.source.name} has {count} pictures (or shards), {state['units']} when the checkpoint was "
                "written: training goes on in another order, and may repeat some of this epoch",
                stacklevel=2,
            )


class _TrainingBatches:
    """What Lightning iterates over; every iteration goes on where training stands."""

    def __init__(self, data: ImageTextData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        return self.data.training_batches()


# ---------------------------------------------------------------------------------------------------- one picture


@dataclass(frozen=True)
class Preparation:
    """Sample -> picture tensor and caption."""

    resolution: int
    max_pixels: int
    captions_needed: bool
    random_crop: bool

    def __call__(self, sample: Sample, data: bytes, across: float = 0.5) -> tuple[Tensor, str, tuple[str, ...]]:
        """([3, S, S] uint8, caption, what was converted); raises BadFile."""
        caption, converted = self._caption(sample)  # first: it is the cheaper one
        picture = read_picture(data, max_pixels=self.max_pixels, at_least=self.resolution)
        pixels = np.array(square(picture.image, self.resolution, across))
        return torch.from_numpy(pixels).permute(2, 0, 1), caption, picture.converted + converted

    def _caption(self, sample: Sample) -> tuple[str, tuple[str, ...]]:
        try:
            return read_caption(sample.caption), ()
        except BadFile as error:
            if self.captions_needed:
                raise
            return "", () if error.reason == "no caption" else (f"without its {error.reason}",)


def read_caption(caption: bytes | str | BadFile | None) -> str:
    """Raises BadFile: "no caption", "empty caption", "caption not in UTF-8", or what the source found."""
    if isinstance(caption, BadFile):
        raise caption
    if caption is None:
        raise BadFile("no caption")
    try:
        text = caption.decode("utf-8-sig") if isinstance(caption, bytes) else caption
        text.encode()  # JSON can hold halves of surrogate pairs
    except UnicodeError as error:
        raise BadFile("caption not in UTF-8", str(error)) from error
    if not text.strip():
        raise BadFile("empty caption")
    return text.strip()


def image_bytes(sample: Sample) -> bytes:
    if isinstance(sample.image, BadFile):
        raise sample.image
    return sample.image if isinstance(sample.image, bytes) else read_file(sample.image)


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def as_batch(pictures: list[tuple[str, Tensor, str]]) -> Batch:
    keys, images, captions = zip(*pictures, strict=True)
    return Batch(torch.stack(images).float() / 255, list(captions), list(keys))


# ---------------------------------------------------------------------------------------------------- held out


def chosen(source: Source, count: int, preparation: Preparation) -> tuple[list[Sample], Tally]:
    """The `count` usable samples whose keys have the smallest hashes, and what was passed over."""
    samples, tally = [], Tally()
    for sample in source.by_hash(2 * count + 16):
        try:
            preparation(sample, image_bytes(sample))
        except BadFile as error:
            tally.skip(source.name, sample.key, error)
            continue
        samples.append(sample)
        if len(samples) == count:
            return samples, tally
    bad = "".join(f"; {row['key']}: {row['reason']}" for row in tally.skipped[:5])
    raise UsageError(
        f"{source.name} has {len(samples)} usable pictures among the first {len(samples) + len(tally.skipped)}, fewer "
        f"than data.init_args.validation_pictures ({count}){bad}"
    )


def equal_batches(samples: list[Sample], world: int, size: int) -> list[list[list[Sample]]]:
    """For each rank its batches: in order, none left out, none twice, the same number on all ranks.

    Validation steps of sharded models wait for each other, so a rank with a batch less would leave the others hanging.
    Batches differ by at most one picture; they exceed `size`, by one, only where there would be empty ones.
    """
    if len(samples) < world:
        raise UsageError(
            f"data.init_args.validation_pictures ({len(samples)}) must be at least the number of ranks ({world})"
        )
    each = min(-(-len(samples) // (world * size)), len(samples) // world)
    edges = [len(samples) * i // (each * world) for i in range(each * world + 1)]
    batches = [samples[first:last] for first, last in zip(edges, edges[1:], strict=False)]
    return [batches[rank * each : (rank + 1) * each] for rank in range(world)]


class _HeldOut(Dataset):
    def __init__(self, batches: list[list[Sample]], preparation: Preparation) -> None:
        self.batches, self.preparation = batches, preparation

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        batch = self.batches[index]
        return as_batch([(sample.key, *self.preparation(sample, image_bytes(sample))[:2]) for sample in batch])


# ---------------------------------------------------------------------------------------------------- training


@dataclass
class _Report:
    """What a worker hands to the training process: a batch, or word that there is none."""

    stream: int
    place: Place = (0, 0)  # of the stream behind this batch
    batch: Batch | None = None
    tally: Tally = field(default_factory=Tally)  # since the last report
    error: Exception | None = None


@dataclass
class _Stream(IterableDataset):
    source: Source
    deal: Deal
    streams: list[int]  # of this rank's workers, in the order in which the loader asks them
    held_out: frozenset[bytes]
    prepare: Preparation
    batch_size: int
    shuffle_buffer: int
    seed: int

    def __iter__(self) -> Iterator[_Report]:
        worker = get_worker_info()
        stream = self.streams[worker.id if worker else 0]
        try:
            yield from self._reports(stream)
        except (ValueError, OSError) as error:  # sent, not raised: a worker's exception arrives as a traceback in text
            yield _Report(stream, error=error)

    def _reports(self, stream: int) -> Iterator[_Report]:
        pictures, tally, fruitful = [], Tally(), self.deal.places[stream][0]
        for place, seed, sample in self._samples(stream):
            if picture := self._picture(sample, seed, tally):
                pictures.append(picture)
                fruitful = place[0]
            elif place[0] > fruitful + PATIENCE * len(self.source) * self.deal.parts:
                raise UsageError(f"{self.source.name} has no picture to train on: all are held out or cannot be used")
            full = len(pictures) == self.batch_size
            if full or len(tally.skipped) >= REPORTED_AT:
                yield _Report(stream, place, as_batch(pictures) if full else None, tally)
                pictures, tally = [] if full else pictures, Tally()

    def _picture(self, sample: Sample, seed: list[int], tally: Tally) -> tuple[str, Tensor, str] | None:
        across = np.random.default_rng(seed).random() if self.prepare.random_crop else 0.5
        try:
            data = image_bytes(sample)
            if digest(data) in self.held_out:
                tally.held_out += 1
                return None
            pixels, caption, converted = self.prepare(sample, data, across)
        except BadFile as error:
            tally.skip(self.source.name, sample.key, error)
            return None
        tally.kept += 1
        tally.converted.update(converted)
        return sample.key, pixels, caption

    def _samples(self, stream: int) -> Iterator[tuple[Place, list[int], Sample]]:
        """(place behind the sample, a seed for it, sample)."""
        for turn, unit, used in self.deal.turns(stream):
            blocks = shuffled_blocks(self._unit(unit), self.shuffle_buffer, [self.seed, unit])
            for number, sample in enumerate(blocks):
                if number >= used:
                    yield (turn, number + 1), [self.seed, unit, number], sample

    def _unit(self, unit: int) -> Iterator[Sample]:
        parts = self.deal.parts
        return self.source.read(*divmod(shuffled_unit(unit, len(self.source) * parts, self.seed), parts), parts)
