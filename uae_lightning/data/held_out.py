"""Held-out samples: chosen by hash, the same in every run, shared out evenly among ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from uae_lightning.data.images import BadFile
from uae_lightning.data.skipped import Tally
from uae_lightning.data.sources import Sample, Source
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError


def chosen(source: Source, count: int, read: Callable[[Sample], Any]) -> tuple[list[Sample], Tally]:
    """The `count` usable samples whose keys have the smallest hashes, and what was passed over.

    Args:
        read: raises BadFile where a sample cannot be used.
    """
    samples, tally = [], Tally()
    for sample in source.by_hash(2 * count + 16):
        try:
            read(sample)
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


def leaves_some(source: Source, held_out: int) -> None:
    """Raises UsageError where nothing is left to train on."""
    if held_out >= len(source) and not source.splittable:
        raise UsageError(
            f"holding out data.init_args.validation_pictures ({held_out}) of the {len(source)} pictures of "
            f"{source.name} leaves none to train on: lower it, or name others with data.init_args.validation_path"
        )


def equal_batches(samples: list[Any], world: int, size: int) -> list[list[list[Any]]]:
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


def loader(batches: list[list[Any]], batch: Callable[[list[Any]], Batch], workers: int) -> DataLoader:
    """Reads the batches of one rank, in order."""
    return DataLoader(_HeldOut(batches, batch), batch_size=None, num_workers=min(workers, len(batches)))


class _HeldOut(Dataset):
    def __init__(self, batches: list[list[Any]], batch: Callable[[list[Any]], Batch]) -> None:
        self.batches, self.batch = batches, batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batch(self.batches[index])
