"""Pictures that keep about the shape they have: batches of one shape each, of a few that a decoder can draw.

A window of batches is read at a time, sorted by width / height and cut into batches. So all are full, no picture waits
in a queue that a checkpoint would have to hold, and each loses little: its neighbors have about its shape.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from uae_lightning.data.image_text import ImageTextData, PictureReader, Read
from uae_lightning.data.images import upright_size
from uae_lightning.data.sources import Sample, key_hash
from uae_lightning.ranges import Count, Limit, checked
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

Shape = tuple[int, int]  # (width, height) in pixels


def bucket_shapes(resolution: int, step: int, widest: float = 4.0) -> list[Shape]:
    """All shapes up to `widest` to one whose shorter side is a multiple of `step`, with the longest other side that is
    one, too, and no more than resolution^2 pixels: none takes more memory than the square.

    Raises:
        ValueError: the square is not among them.
    """
    if resolution % step:
        raise ValueError(f"must divide the resolution, {resolution}; it is {step}")
    sides = ((short, resolution**2 // short // step * step) for short in range(step, resolution + 1, step))
    upright = [(short, long) for short, long in sides if long <= widest * short]
    return [*upright, *((width, height) for height, width in reversed(upright[:-1]))]


def nearest(shapes: list[Shape], aspect: float) -> Shape:
    """By the ratio of width / height."""
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1] / aspect)))


@checked
class BucketedData(ImageTextData):
    """Pictures of one's own as `ImageTextData` has them, but not cut to squares: for stages.decoder_pretrain.

    Held-out pictures stay central squares, so that rewards and suites are those of all other stages. A run that is
    resumed with another number of ranks or workers reads windows that were begun once more.

    Args:
        path: as of `ImageTextData`.
        resolution: of the square with the most pixels that a picture has.
        step: sides of pictures in pixels are multiples of it (`bucket_shapes`); itself a multiple of what the decoder
            needs, and a divisor of `resolution`.
        widest: how many times the longer side is the shorter one at most; of pictures beyond it the middle is taken.
        **options: of `ImageTextData`. A worker holds 16 batches in memory.

    Raises:
        UsageError: the step does not divide the resolution, the decoder draws squares alone, or the stage needs them.
    """

    def __init__(
        self, path: str | list[str], resolution: Count, step: Count = 64, widest: Limit = 4.0, **options
    ) -> None:
        super().__init__(path, resolution, **options)
        if widest < 1:
            raise UsageError(f"data.init_args.widest must be at least 1, got {widest}")
        try:
            self.shapes = bucket_shapes(resolution, step, widest)
        except ValueError as error:
            raise UsageError(f"data.init_args.step {error}") from error

    def setup(self, stage: str) -> None:
        super().setup(stage)
        module = self.trainer.lightning_module
        if not module.latents_suffice:
            raise UsageError(
                f"{type(module).__name__} needs squares: buckets are for DecoderPretrain; set data.class_path to "
                "uae_lightning.data.image_text.ImageTextData"
            )
        for shape in self.shapes:
            try:
                module.decoder.check_size(*shape)
            except ValueError as error:
                raise UsageError(f"data.init_args.step: {error}") from error

    def reader(self) -> BucketReader:
        return BucketReader(self.source.name, self.preparation, self.held_out_digests(), self.shapes)


@dataclass(frozen=True)
class Waiting:
    """A picture of the window, as it is where its batch has the shape that fits it best."""

    read: Read
    shape: Shape
    aspect: float
    sample: Sample
    data: bytes
    across: float


@dataclass(frozen=True)
class BucketReader(PictureReader):
    shapes: list[Shape]
    window: ClassVar[int] = 16

    def prepared(self, sample: Sample, data: bytes, across: float) -> tuple[Waiting, tuple[str, ...]]:
        width, height = upright_size(data)
        aspect = width / height if width and height else 1.0
        shape = nearest(self.shapes, aspect)
        pixels, caption, converted = replace(self.preparation, shape=shape)(sample, data, across)
        read = (sample.key, pixels, caption, self.preparation.prompt(sample), sample.metadata)
        return Waiting(read, shape, aspect, sample, data, across), converted

    def batches(self, read: list[Waiting]) -> Iterator[Batch]:
        """In an order drawn from the name of the first picture."""
        order = np.random.default_rng(key_hash(read[0].sample.key)).permutation(self.window)
        ordered, size = sorted(read, key=lambda one: one.aspect), len(read) // self.window
        for number in order:
            yield self.batch(ordered[number * size : (number + 1) * size])

    def batch(self, read: list[Waiting]) -> Batch:
        shape = nearest(self.shapes, statistics.median(one.aspect for one in read))
        return super().batch([one.read if one.shape == shape else self._cut(one, shape) for one in read])

    def _cut(self, one: Waiting, shape: Shape) -> Read:
        """Decoded anew: pixels that were scaled to one shape would be scaled twice."""
        pixels, _ = replace(self.preparation, shape=shape).pixels(one.data, one.across)
        key, _, *rest = one.read
        return (key, pixels, *rest)
