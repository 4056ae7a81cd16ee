"""The endless training stream that data modules share: dealt to ranks and workers, resumable at any batch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uae_lightning.data.dealing import Deal, Place, parts_for, shuffled_blocks, shuffled_unit
from uae_lightning.data.skipped import FILE, SkippedFiles, Tally
from uae_lightning.data.sources import Source
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

REPORTED_AT = 100  # skipped samples in a row after which a stream says so although it has no batch yet
PATIENCE = 20  # epochs without a sample that can be used, after which a stream gives up


class Reader(ABC):
    """What a worker does with samples; it is sent there, so it holds no trainer and no models."""

    window: ClassVar[int] = 1  # batches that are put together at a time

    @abstractmethod
    def __call__(self, sample: Any, seed: list[int], tally: Tally) -> Any:
        """One for the batch, or None where the sample is not for training; counted in `tally` either way."""

    @abstractmethod
    def batch(self, read: list[Any]) -> Batch: ...

    def batches(self, read: list[Any]) -> Iterator[Batch]:
        """`window` batches of what was read for them, the same ones each time."""
        yield self.batch(read)


class StreamedData(L.LightningDataModule, ABC):
    """A data module whose training batches are an endless stream, different on every rank.

    Each dataloader worker of each rank takes its turns of the shuffled units of `source` (of the shuffled shards, then
    shuffled in blocks within a shard), so that each is read once per epoch by one of them. Batches are always full. A
    checkpoint holds the place of every worker of every rank: a resumed run goes on with the next sample, exactly; with
    another number of ranks or workers, what was left is dealt anew (of a window of batches, all of it).

    Args:
        batch_size: samples per batch and device.
        shuffle_buffer: samples of a shard that are shuffled at a time.
        max_skipped: share of unusable samples above which the run stops.
        num_workers: processes that read, per device; 0 reads in the training loop.
        seed: of the order.
    """

    def __init__(self, batch_size: int, shuffle_buffer: int, max_skipped: float, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.shuffle_buffer, self.max_skipped = batch_size, shuffle_buffer, max_skipped
        self.num_workers, self.seed = num_workers, seed
        self.skipped_files: SkippedFiles | None = None
        self._held_out_tally = Tally()
        self._start_at(0, None)

    @property
    @abstractmethod
    def source(self) -> Source:
        """What is streamed."""

    @abstractmethod
    def reader(self) -> Reader:
        """Reads samples of `source`."""

    @property
    @abstractmethod
    def held_out(self) -> list:
        """The validation samples, the same ones on every rank, in every run and in every stage."""

    def held_out_tally(self) -> Tally:
        """What was passed over while the held-out samples were chosen; raises where that cannot be done."""
        return self._held_out_tally if self.held_out else Tally()

    def rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    # ------------------------------------------------------------------------------------------------ hooks

    def setup(self, stage: str) -> None:
        self._start_at(0, None)  # a checkpoint, if there is one, is read after this

    def train_dataloader(self) -> Iterable[Batch]:
        rank, _ = self.rank_and_world()
        file = Path(self.trainer.default_root_dir) / FILE if self.trainer else None
        if file and rank == 0 and not self._first_batch:
            file.unlink(missing_ok=True)  # of an earlier run; the other ranks wait for this method before they read
        self.skipped_files = SkippedFiles(self.max_skipped, self.source.name, file)
        if rank == 0:
            self.skipped_files.add(self.held_out_tally())
        return _TrainingBatches(self)

    def teardown(self, stage: str) -> None:
        files = self.skipped_files
        if files and files.reasons and self.rank_and_world()[0] == 0:
            warnings.warn(files.summary(), stacklevel=2)

    # ------------------------------------------------------------------------------------------------ stream

    def training_batches(self) -> Iterator[Batch]:
        """From behind the last batch that was used, endless."""
        self._settle()
        self._reports.clear()
        rank, world = self.rank_and_world()
        workers = max(self.num_workers, 1)
        if self._deal is None:
            parts = parts_for(len(self.source), world * workers) if self.source.splittable else 1
            self._deal = Deal(world * workers, parts)
        self._deal = self._deal.redealt(world * workers)
        stream = _Stream(
            source=self.source,
            deal=self._deal,
            streams=[rank * workers + (self._first_batch + worker) % workers for worker in range(workers)],
            read=self.reader(),
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

    # ------------------------------------------------------------------------------------------------ where it stands

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

    def __init__(self, data: StreamedData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        return self.data.training_batches()


@dataclass
class _Report:
    """What a worker hands to the training process: a batch, or word that there is none."""

    stream: int
    place: Place = (0, 0, 0)  # of the stream behind this batch
    batch: Batch | None = None
    tally: Tally = field(default_factory=Tally)  # since the last report
    error: Exception | None = None


@dataclass
class _Stream(IterableDataset):
    source: Source
    deal: Deal
    streams: list[int]  # of this rank's workers, in the order in which the loader asks them
    read: Reader
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
        *at, done = self.deal.places[stream]
        behind: Place = (*at, 0)
        tally = Tally()
        usable = self._usable(stream, tally)
        while True:
            start, read = behind, []
            while len(read) < self.read.window * self.batch_size:
                behind, one = next(usable)
                if one is not None:
                    read.append(one)
                elif not done:
                    yield _Report(stream, tally=tally.taken())
            counted = tally.taken() if not done else Tally()
            for number, batch in enumerate(self.read.batches(read), 1):
                if number > done:  # a run that was stopped has used the others
                    place = behind if number == self.read.window else (*start[:2], number)
                    yield _Report(stream, place, batch, counted)
                    counted = Tally()
            done = 0

    def _usable(self, stream: int, tally: Tally) -> Iterator[tuple[Place, Any]]:
        """(place behind it, what was read), endless; None where many were skipped."""
        fruitful = self.deal.places[stream][0]
        fruitless: dict[Any, str] = {}  # sample -> reason, since the last that was of use
        for place, seed, sample in self._samples(stream):
            skips = len(tally.skipped)
            if (one := self.read(sample, seed, tally)) is not None:
                fruitful = place[0]
                fruitless.clear()
                yield place, one
                continue
            reason = tally.skipped[-1]["reason"] if len(tally.skipped) > skips else "held out"
            fruitless[getattr(sample, "key", sample)] = reason
            if place[0] > fruitful + PATIENCE * len(self.source) * self.deal.parts:
                reasons = ", ".join(f"{why} ({n})" for why, n in Counter(fruitless.values()).most_common())
                raise UsageError(f"{self.source.name} has no picture to train on: {reasons}")
            if len(tally.skipped) >= REPORTED_AT:
                yield place, None

    def _samples(self, stream: int) -> Iterator[tuple[Place, list[int], Any]]:
        """(place behind the sample, a seed for it, sample)."""
        for turn, unit, used in self.deal.turns(stream):
            block = used // self.shuffle_buffer  # those before it are used up
            start = block * self.shuffle_buffer
            blocks = shuffled_blocks(self._unit(unit, start), self.shuffle_buffer, [self.seed, unit], block)
            for number, sample in enumerate(blocks, start):
                if number >= used:
                    yield (turn, number + 1, 0), [self.seed, unit, number], sample

    def _unit(self, unit: int, start: int) -> Iterator[Any]:
        parts = self.deal.parts
        at = divmod(shuffled_unit(unit, len(self.source) * parts, self.seed), parts)
        return self.source.read_from(start, *at, parts)
