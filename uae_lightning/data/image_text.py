"""Pictures of one's own, with captions or without, as a LightningDataModule."""

from __future__ import annotations

import functools
import hashlib
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from uae_lightning.data import held_out
from uae_lightning.data.images import MAX_ASPECT, MAX_PIXELS, MIN_SIDE, BadFile, cropped, read_file, read_picture
from uae_lightning.data.opening import open_source
from uae_lightning.data.skipped import Tally
from uae_lightning.data.sources import Columns, Sample, Source
from uae_lightning.data.streams import Reader, StreamedData
from uae_lightning.data.words import count_words
from uae_lightning.ranges import Count, Limit, Natural, Seed, Share, checked
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

Read = tuple[str, Tensor, str, str | None, dict[str, Any] | None]  # key, [3, H, W] uint8, caption, prompt, metadata
MAX_CAPTION_WORDS = 1000  # some 1,400 tokens; the paper's captions have over 250 words


@checked
class ImageTextData(StreamedData):
    """A folder of pictures, a JSONL, WebDataset shards, a saved `datasets` data set, or one of the hub.

    Training is an endless stream, different on every rank, each picture once per epoch, resumable at any batch:
    `streams.StreamedData`.

    Held-out pictures are those of smallest hash (of `validation_path`, or else of `path`), whether they have captions
    or not; every rank gets its share of them, all ranks the same number of batches. What has the same bytes is never
    trained on, under whatever name. Of shards and data sets of the hub without `validation_path`, the first 10 samples
    for each one wanted are looked at.

    Files that cannot be used are skipped, and listed in `<default_root_dir>/skipped.jsonl` with the reason; totals are
    a warning when the run ends.

    Args:
        path: a folder (searched below too; captions in a .txt of the picture's name, several in a .json with a list),
            a .jsonl, a .tar or a folder or pattern of them (`{000..127}.tar`; URLs too), a folder written by
            `Dataset.save_to_disk`, or `hub:OWNER/NAME` (`?split=train&subset=NAME&revision=COMMIT`, as they are
            needed; `hub:FOLDER` for a copy of such a repository). Rows of a .jsonl and of `datasets` data sets may be
            chats (`chat_rows`: `messages`, `images`).
        resolution: side of the square pictures, that of the decoder; the shorter side is scaled, the longer cropped.
        batch_size: pictures per batch and device.
        require_captions: train on pictures with a caption only; for decoder pre-training. Else the caption is "".
        random_crop: crop anywhere instead of in the middle.
        validation_path: where the held-out pictures come from instead, in any of the forms of `path`.
        validation_pictures: how many are held out; no fewer than there are ranks.
        validation_batch_size: pictures per validation batch and device, about: batches are made equal.
        shuffle_buffer: samples of a shard that are shuffled at a time; a worker holds as many files in memory.
        max_source_pixels: larger pictures are skipped, at most 178 million.
        min_source_side: pictures with a shorter side, in pixels, are skipped.
        max_aspect_ratio: pictures are skipped whose longer side is more than so many times the shorter.
        max_caption_words: longer captions are refused: a batch is as wide as its longest caption, and one of 10,000
            words makes it run out of memory. In Chinese and Japanese each character is a word (`data.words`).
        max_skipped: share of unusable files above which the run stops.
        image_column, caption_column: names in a JSONL, a `datasets` data set or the .json of shards. A caption may be a
            list of captions, of which one is drawn each time the picture comes; of held-out pictures the first.
        prompt_column: the same for terse prompts, of which the captions are complete ones: for RewriteSFT. Pictures
            without a prompt or without a caption are then skipped in training. None: no prompts are read.
        metadata_columns: others that go to the reward as they are (`RewardInput.metadata`), such as the questions of
            rewards.caption_qa.CaptionQA.
        num_workers: processes that decode, per device; 0 decodes in the training loop.
        seed: of the order, and of random crops.

    Raises:
        UsageError, FileNotFoundError: an option is wrong, or the data set has not the form it should have.
    """

    def __init__(
        self,
        path: str | list[str],
        resolution: Count,
        batch_size: Count = 8,
        require_captions: bool = False,
        random_crop: bool = False,
        validation_path: str | list[str] | None = None,
        validation_pictures: Count = 64,
        validation_batch_size: Count = 8,
        shuffle_buffer: Count = 256,
        max_source_pixels: Count = MAX_PIXELS,
        min_source_side: Count = MIN_SIDE,
        max_aspect_ratio: Limit = MAX_ASPECT,
        max_caption_words: Count = MAX_CAPTION_WORDS,
        max_skipped: Share = 0.05,
        image_column: str = "image",
        caption_column: str = "caption",
        prompt_column: str | None = None,
        metadata_columns: list[str] | None = None,
        num_workers: Natural = 4,
        seed: Seed = 0,
    ) -> None:
        super().__init__(batch_size, shuffle_buffer, max_skipped, num_workers, seed)
        if max_source_pixels > 2 * MAX_PIXELS:
            raise UsageError(f"data.init_args.max_source_pixels must be 1 to {2 * MAX_PIXELS}, got {max_source_pixels}")
        if max_aspect_ratio < 1:
            raise UsageError(f"data.init_args.max_aspect_ratio must be at least 1, got {max_aspect_ratio}")
        self.path, self.validation_path = path, validation_path
        captions_needed = require_captions or prompt_column is not None
        columns = tuple(metadata_columns or ())
        self.columns = Columns(image_column, caption_column, captions_needed, prompt_column, columns)
        self.preparation = Preparation(
            resolution, max_source_pixels, captions_needed, random_crop, max_caption_words,
            min_source_side, max_aspect_ratio, prompts_needed=prompt_column is not None,
        )  # fmt: skip
        self.validation_pictures, self.validation_batch_size = validation_pictures, validation_batch_size

    @functools.cached_property
    def source(self) -> Source:
        source = open_source(self.path, self.columns)
        if names := source.without():
            warnings.warn(f"{source.name}: files that are no pictures are left out: {names}", stacklevel=2)
        return source

    @functools.cached_property
    def held_out(self) -> list[Sample]:
        picture = HeldOutPictures(self.preparation)
        if self.validation_path is None:
            samples, _ = held_out.chosen(self.source, self.validation_pictures, picture)  # training counts the bad ones
            held_out.leaves_some(self.source, len(samples))
        else:
            columns = replace(self.columns, captions_needed=False, prompt=None)
            source = open_source(self.validation_path, columns, "validation_path")
            samples, self._held_out_tally = held_out.chosen(source, self.validation_pictures, picture)
        return samples

    def held_out_digests(self) -> frozenset[bytes]:
        return frozenset(digest(image_bytes(sample)) for sample in self.held_out)

    def val_dataloader(self) -> DataLoader:
        rank, world = self.rank_and_world()
        batches = held_out.equal_batches(self.held_out, world, self.validation_batch_size)[rank]
        return held_out.loader(batches, HeldOutPictures(self.preparation).batch, self.num_workers)

    def reader(self) -> PictureReader:
        return PictureReader(self.source.name, self.preparation, self.held_out_digests())


# ---------------------------------------------------------------------------------------------------- one picture


@dataclass(frozen=True)
class Preparation:
    """Sample -> picture tensor and caption."""

    resolution: int
    max_pixels: int
    captions_needed: bool
    random_crop: bool
    max_words: int = MAX_CAPTION_WORDS  # of a caption
    min_side: int = MIN_SIDE
    max_aspect: float = MAX_ASPECT
    prompts_needed: bool = False
    shape: tuple[int, int] | None = None  # (width, height); None: the square of `resolution`

    def __call__(self, sample: Sample, data: bytes, across: float = 0.5) -> tuple[Tensor, str, tuple[str, ...]]:
        """([3, H, W] uint8, caption, what was converted or left out); raises BadFile."""
        caption, without = self.caption(sample)  # first: it is the cheaper one
        pixels, converted = self.pixels(data, across)
        return pixels, caption, converted + without

    def pixels(self, data: bytes, across: float = 0.5) -> tuple[Tensor, tuple[str, ...]]:
        limits = {"max_pixels": self.max_pixels, "min_side": self.min_side, "max_aspect": self.max_aspect}
        width, height = self.shape or (self.resolution, self.resolution)
        picture = read_picture(data, at_least=max(width, height), **limits)
        pixels = np.array(cropped(picture.image, width, height, across))
        return torch.from_numpy(pixels).permute(2, 0, 1), picture.converted

    def prompt(self, sample: Sample) -> str | None:
        """None where none is needed; raises BadFile."""
        if not self.prompts_needed:
            return None
        try:
            return read_caption(sample.prompt, self.max_words)
        except BadFile as error:
            raise BadFile(error.reason.replace("caption", "prompt"), error.detail) from error

    def caption(self, sample: Sample) -> tuple[str, tuple[str, ...]]:
        """(caption, what the sample goes without); raises BadFile."""
        without = ("without further pictures of its name",) if sample.others else ()
        try:
            return read_caption(sample.caption, self.max_words), without
        except BadFile as error:
            if self.captions_needed:
                raise
            return "", without + (() if error.reason == "no caption" else (f"without its {error.reason}",))


@dataclass(frozen=True)
class PictureReader(Reader):
    """Reads what is trained on; counts what is not."""

    source: str
    preparation: Preparation
    held_out: frozenset[bytes]  # digests

    def __call__(self, sample: Sample, seed: list[int], tally: Tally) -> Read | None:
        rng = np.random.default_rng(seed)
        across = rng.random() if self.preparation.random_crop else 0.5
        if isinstance(sample.caption, tuple):
            sample = replace(sample, caption=sample.caption[rng.integers(len(sample.caption))])
        try:
            data = image_bytes(sample)
            if digest(data) in self.held_out:
                tally.held_out += 1
                return None
            one, converted = self.prepared(sample, data, across)
        except BadFile as error:
            tally.skip(self.source, sample.key, error)
            return None
        tally.kept += 1
        tally.converted.update(converted)
        return one

    def prepared(self, sample: Sample, data: bytes, across: float) -> tuple[Any, tuple[str, ...]]:
        """(one for the batch, what was converted); raises BadFile."""
        prompt = self.preparation.prompt(sample)
        pixels, caption, converted = self.preparation(sample, data, across)
        return (sample.key, pixels, caption, prompt, sample.metadata), converted

    def batch(self, read: list[Read]) -> Batch:
        return as_batch(read)


class HeldOutPictures:
    """Reads what is validated on: cropped in the middle, and no captions are needed, as the encoder writes them."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = replace(preparation, captions_needed=False)

    def __call__(self, sample: Sample) -> Read:
        pixels, caption, _ = self.preparation(sample, image_bytes(sample))
        return sample.key, pixels, caption, None, sample.metadata

    def batch(self, samples: list[Sample]) -> Batch:
        return as_batch([self(sample) for sample in samples])


def read_caption(caption: bytes | str | tuple[str, ...] | BadFile | None, max_words: int = MAX_CAPTION_WORDS) -> str:
    """Of several the first. Raises BadFile: "no caption", "empty caption", "caption not in UTF-8", "overlong caption",
    or what the source found."""
    caption = caption[0] if isinstance(caption, tuple) else caption
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
    if (words := count_words(text)) > max_words:
        raise BadFile("overlong caption", f"{words:,} words, the limit is {max_words:,}")
    return text.strip()


def image_bytes(sample: Sample) -> bytes:
    if isinstance(sample.image, BadFile):
        raise sample.image
    return sample.image if isinstance(sample.image, bytes) else read_file(sample.image)


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def as_batch(pictures: list[Read]) -> Batch:
    keys, images, captions, prompts, rows = zip(*pictures, strict=True)
    images = torch.stack(images).float() / 255
    prompts = None if None in prompts else list(prompts)
    metadata = None if all(row is None for row in rows) else [row or {} for row in rows]
    return Batch(images, list(captions), list(keys), prompts=prompts, metadata=metadata)
