"""The processor of any image-text-to-text model, without torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import is_torchvision_available


def load_processor(folder: Path) -> ProcessorMixin:
    """The processor in a model's folder; it pads on the left, as generation needs.

    Raises:
        ValueError: it takes no pictures, or has no chat template.
    """
    try:
        with without_video_processors():
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"no processor for pictures and text in {folder}: {error}") from error
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{folder} has a {type(processor).__name__}, which takes no pictures: name another --model")
    if not processor.chat_template:
        raise ValueError(f"{folder} has no chat template: name a --model that was tuned to follow instructions")
    processor.tokenizer.padding_side = "left"
    processor.tokenizer.pad_token = processor.tokenizer.pad_token or processor.tokenizer.eos_token
    return processor


@contextmanager
def without_video_processors() -> Iterator[None]:
    """Where torchvision is missing, processors load with None for the part that reads videos.

    Many models take videos too, and transformers refuses the whole processor without torchvision, though for pictures
    it has processors that need Pillow alone.
    """
    if is_torchvision_available():
        yield
        return
    check = ProcessorMixin.check_argument_for_proper_class

    def check_others(self: ProcessorMixin, name: str, argument: object) -> object:
        return None if name == "video_processor" else check(self, name, argument)

    with (
        mock.patch.object(AutoVideoProcessor, "from_pretrained", lambda *_, **__: None),
        mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", check_others),
    ):
        yield


def with_places(patches: Tensor, grids: Tensor, side: int, merge: int) -> Tensor:
    """The two channels that `QwenVLEncoder.patchify` adds for vision towers of five: the place of each pixel.

    Args:
        patches: [n, 3 * T * side * side] of all pictures.
        grids: [B, 3], patches of each picture in time, down and across.
        side: of a patch in pixels.
        merge: of how many patches down and across a token is made, which come one after the other.

    Returns:
        [n, 5 * T * side * side]
    """
    places = []
    for _, rows, columns in grids.tolist():
        axes = [torch.linspace(-1, 1, count * side) for count in (rows, columns)]
        plane = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        blocks = plane.reshape(2, rows // merge, merge, side, columns // merge, merge, side)
        places.append(blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 2, 1, side, side))
    colors = patches.reshape(len(patches), 3, -1, side, side)
    return torch.cat([colors, torch.cat(places).expand(-1, -1, colors.shape[2], -1, -1)], 1).flatten(1)
