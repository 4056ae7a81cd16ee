"""Pre-training from a cache that `uae cache` wrote: neither pictures nor captions are read, VAE and encoder rest."""

from __future__ import annotations

import functools
import heapq
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from uae_lightning.data import held_out
from uae_lightning.data.cache_shards import Entry, contents, inspect_all, read_entry
from uae_lightning.data.fingerprint import differences, fingerprint
from uae_lightning.data.image_text import HeldOutPictures, Preparation, digest, image_bytes
from uae_lightning.data.images import MAX_PIXELS
from uae_lightning.data.opening import open_source
from uae_lightning.data.skipped import Tally
from uae_lightning.data.sources import Columns, Sample, Source
from uae_lightning.data.streams import Reader, StreamedData
from uae_lightning.ranges import Count, Natural, Seed, checked
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError


@checked
class CachedData(StreamedData):
    """Latents and caption states from a folder that `uae cache` wrote, for DecoderPretrain.

    Training is an endless stream, different on every rank, each sample once per epoch, shuffled over all shards,
    resumable at any batch: `streams.StreamedData`. A sample is read when its turn comes and forgotten afterwards.

    A cache that other weights, another template, resolution or precision have made is refused when training starts.

    Held-out pictures are those of smallest hash of `validation_path`; they make the round trip, which needs the
    encoder. Without `validation_path` they are samples of the cache, which are drawn from the captions they have.
    Neither is ever trained on.

    Args:
        path: the folder.
        batch_size: samples per batch and device.
        validation_path: pictures to hold out, in any form of `ImageTextData`; they need no captions.
        validation_pictures: how many are held out; no fewer than there are ranks.
        validation_batch_size: pictures per validation batch and device, about: batches are made equal.
        max_source_pixels, image_column: of `validation_path`, as in `ImageTextData`.
        num_workers: processes that read, per device; 0 reads in the training loop.
        seed: of the order.

    Raises:
        UsageError, FileNotFoundError: there is no cache, or it is not one that this stage would have made.
    """

    def __init__(
        self,
        path: str,
        batch_size: Count = 8,
        validation_path: str | list[str] | None = None,
        validation_pictures: Count = 64,
        validation_batch_size: Count = 8,
        max_source_pixels: Count = MAX_PIXELS,
        image_column: str = "image",
        num_workers: Natural = 2,
        seed: Seed = 0,
    ) -> None:
        super().__init__(batch_size, shuffle_buffer=1, max_skipped=0.0, num_workers=num_workers, seed=seed)
        self.path, self.validation_path = path, validation_path
        self.validation_pictures, self.validation_batch_size = validation_pictures, validation_batch_size
        self.max_source_pixels, self.columns = max_source_pixels, Columns(image_column)

    # ------------------------------------------------------------------------------------------------ what there is

    @functools.cached_property
    def source(self) -> CacheIndex:
        return CacheIndex(Path(self.path))

    @property
    def pictures(self) -> HeldOutPictures:
        """Reads pictures of `validation_path` at the resolution of the cache."""
        return HeldOutPictures(Preparation(self.source.header.resolution, self.max_source_pixels, False, False))

    @functools.cached_property
    def held_out(self) -> list[Sample] | list[CachedSample]:
        if self.validation_path is not None:
            source = open_source(self.validation_path, self.columns, "validation_path")
            samples, self._held_out_tally = held_out.chosen(source, self.validation_pictures, self.pictures)
            return samples
        held_out.leaves_some(self.source, self.validation_pictures)
        return list(self.source.by_hash(self.validation_pictures))

    # ------------------------------------------------------------------------------------------------ hooks

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.check(self.trainer.lightning_module, self.trainer.precision)

    def check(self, module, precision: str) -> None:
        """Raises UsageError where the stage cannot train from this cache."""
        if not module.latents_suffice:
            raise UsageError(
                f"{type(module).__name__} needs pictures: a cache is for DecoderPretrain; set data.class_path to "
                "uae_lightning.data.image_text.ImageTextData"
            )
        if module.encoder is None and self.validation_path is not None:
            raise UsageError(
                "data.init_args.validation_path holds pictures for the round trip, which needs the encoder: give "
                "model.autoencoder.encoder, or leave validation_path out (samples of the cache are then held out, and "
                "drawn from their own captions)"
            )
        header = self.source.header
        check_padding(module.decoder)
        if differs := differences(header.made_by, fingerprint(module.autoencoder, precision)):
            raise UsageError(
                f"{self.path} was not made by the parts of this stage; it differs in {'; '.join(differs)}. Either give "
                "the stage the options that the cache was made with, or make the cache again with those of the stage "
                f"(`uae cache ... --to {self.path} --overwrite`). It was made with `{header.command}`"
            )
        if (size := self.source.hidden_size) != (wanted := module.projector.input_size):
            raise UsageError(
                f"the states in {self.path} have {size} channels, the projector takes {wanted}: set "
                f"model.autoencoder.projector.input_size to {size}"
            )

    def val_dataloader(self) -> DataLoader:
        rank, world = self.rank_and_world()
        batches = held_out.equal_batches(self.held_out, world, self.validation_batch_size)[rank]
        make = cached_batch if self.validation_path is None else self.pictures.batch
        return held_out.loader(batches, make, self.num_workers)

    def reader(self) -> CacheReader:
        if self.validation_path is None:
            pictures = frozenset(sample.read().content[:16] for sample in self.held_out)
        else:
            pictures = frozenset(digest(image_bytes(sample)) for sample in self.held_out)
        return CacheReader(pictures)


def check_padding(decoder) -> None:
    """Raises UsageError where padding is part of what a decoder is conditioned on: a cache has none."""
    if not decoder.mask_padding:
        raise UsageError(
            "with model.autoencoder.decoder.mask_padding: false pictures depend on how far the captions of a "
            "batch are padded, which a cache does not hold: set it to true, or train without a cache"
        )


# ---------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class CachedSample:
    """Where a sample lies."""

    shard: Path
    row: int

    def read(self) -> Entry:
        return read_entry(self.shard, self.row)


class CacheIndex(Source):
    """Every unit is one sample. Memory of it: a path and a number per shard."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        header, self.shards, counts = inspect_all(folder)
        if header is None:
            raise FileNotFoundError(
                f"{folder} holds no cache: correct data.init_args.path, or make one with "
                f"`uae cache --config STAGE.yaml --to {folder}`"
            )
        self.header, self.ends = header, list(accumulate(counts))
        self.hidden_size = self.sample(0).read().states.shape[1]

    def __len__(self) -> int:
        return self.ends[-1]

    def sample(self, unit: int) -> CachedSample:
        number = bisect_right(self.ends, unit)
        return CachedSample(self.shards[number], unit - (self.ends[number - 1] if number else 0))

    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[CachedSample]:
        yield self.sample(unit)

    def by_hash(self, count: int) -> Iterator[CachedSample]:
        every = ((content, shard, row) for shard in self.shards for row, content in enumerate(contents(shard)))
        return (CachedSample(shard, row) for _, shard, row in heapq.nsmallest(count, every))


@dataclass(frozen=True)
class CacheReader(Reader):
    """Reads what is trained on."""

    held_out: frozenset[bytes]  # digests of pictures

    def __call__(self, sample: CachedSample, seed: list[int], tally: Tally) -> Entry | None:
        entry = sample.read()
        if entry.content[:16] in self.held_out:
            tally.held_out += 1
            return None
        tally.kept += 1
        return entry

    def batch(self, read: list[Entry]) -> Batch:
        return as_batch(read)


def cached_batch(samples: list[CachedSample]) -> Batch:
    return as_batch([sample.read() for sample in samples])


def as_batch(entries: list[Entry]) -> Batch:
    """States are padded with zeros to the longest caption, where the mask [B, L] is False."""
    states = [entry.states for entry in entries]
    mask = torch.arange(max(map(len, states))) < torch.tensor([[len(one)] for one in states])
    return Batch(
        images=torch.empty(len(entries), 3, 0, 0),
        captions=[entry.caption for entry in entries],
        keys=[entry.key for entry in entries],
        latents=torch.stack([entry.latents for entry in entries]),
        embedded=(pad_sequence(states, batch_first=True), mask),
    )
