"""What the rewards share that look at pictures through a frozen network: features, their cosine, preprocessing.

Symbols: N pairs of pictures, E length of an embedding. Pictures are [N, 3, H, W] in [0, 1].
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto.image_processing_auto import get_image_processor_config

from uae_lightning.interfaces import Reward
from uae_lightning.models.resizing import resize
from uae_lightning.paths import resolve
from uae_lightning.ranges import Count, checked
from uae_lightning.types import RewardInput, RewardOutput

FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
REMEMBERED = 256  # batches of originals whose embeddings are kept at most
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # codes of PIL, as preprocessor_config.json has them


class FrozenReward(Reward):
    """A reward whose weights nobody trains. Gradients still flow through it, to the pictures."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenReward:
        """Stays in eval mode whatever the module around it does."""
        return super().train(False)


@checked
class EmbeddingSimilarity(FrozenReward):
    """Cosine between the embeddings of the original and of the reconstruction."""

    name: str  # of the one part

    def __init__(self, micro_batch: Count = 32) -> None:
        super().__init__()
        self.micro_batch = micro_batch
        self.remembers = False  # embeddings of originals, by their content: for pictures that come again and again
        self._remembered: dict[bytes, Tensor] = {}

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, E] fp32, each of length 1 where `compare` is the plain cosine."""

    def forward(self, inputs: RewardInput) -> RewardOutput:
        # The G reconstructions of a picture stand side by side: embed the picture once, not G times.
        originals, index = torch.unique_consecutive(inputs.originals.detach(), return_inverse=True, dim=0)
        a = self._of_originals(originals)[index]
        b = self._in_micro_batches(inputs.reconstructions)
        return self.compare(a, b)

    def compare(self, a: Tensor, b: Tensor) -> RewardOutput:
        """Of the embeddings [N, E] of originals and reconstructions."""
        total = (a * b).sum(-1)
        return RewardOutput(total, {self.name: total})

    def _of_originals(self, images: Tensor) -> Tensor:
        if not self.remembers:
            return self._in_micro_batches(images)
        key = hashlib.blake2b(images.cpu().numpy()).digest()
        if key not in self._remembered:
            if len(self._remembered) == REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = self._in_micro_batches(images)
        return self._remembered[key]

    def _in_micro_batches(self, images: Tensor) -> Tensor:
        return torch.cat([self.embed(part) for part in images.split(self.micro_batch)])


class Preprocessing(nn.Module):
    """Resize, centre-crop and normalise as the image processor of a hub model does, but on a batch of tensors.

    The processors of transformers work on one PIL picture after the other and round to 8 bits on the way; the results
    differ by no more than that rounding, 1 level of 255.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        size, crop = config.get("size"), config.get("crop_size")
        self.size = size if config.get("do_resize", True) else None
        self.crop = crop if config.get("do_center_crop", False) else None
        code = config.get("resample", 3)
        if code not in RESAMPLE:
            raise ValueError(f"preprocessor_config.json asks for resample {code}; supported: {RESAMPLE}")
        self.mode = RESAMPLE[code]
        normalises = config.get("do_normalize", True)
        for name, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
            values = torch.tensor(config[name] if normalises else [neutral] * 3).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def of(cls, model: str | Path) -> Preprocessing:
        """As the model's folder or hub page says.

        The file is read rather than AutoImageProcessor, which needs torchvision for some models (DINOv3).
        """
        config = get_image_processor_config(str(model))
        if not {"size", "image_mean", "image_std"} <= config.keys():
            raise ValueError(f"{model!r} has no preprocessor_config.json with size, image_mean and image_std: add one")
        return cls(config)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, 3, h, w], normalised, in the dtype of this module."""
        images = images.float()
        if self.size is not None:
            target = self._target(*images.shape[2:])
            images = resize(images, target, self.mode)
        if self.crop is not None:
            images = _centre_crop(images, *_height_width(self.crop))
        return (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """The size to resize to: given, or from the shortest edge with the proportions kept."""
        shortest = self.size if isinstance(self.size, int) else self.size.get("shortest_edge")
        if shortest is None:
            return _height_width(self.size)
        long = int(shortest * max(height, width) / min(height, width))
        return (shortest, long) if height <= width else (long, shortest)


def vision_folder(model: str, owner: str, files: list[str] = FILES) -> Path:
    """The folder of a vision model of transformers, from a local path, "shipped:NAME" or a hub id.

    Args:
        owner: name of the reward, for the message.
        files: patterns of what is wanted of a model on the hub.

    Raises:
        FileNotFoundError: it is neither on this machine nor to be had.
    """
    try:
        return resolve(model, files)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{owner}: {error}. A folder needs config.json, model.safetensors and preprocessor_config.json; "
            "uae_lightning.rewards.perceptual_grid.PerceptualGrid needs neither folder nor hub."
        ) from error


def _height_width(size: int | dict) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])


def _centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """[N, 3, H, W] -> [N, 3, height, width]; smaller pictures get a black margin, as in transformers."""
    missing_y, missing_x = max(height - images.shape[2], 0), max(width - images.shape[3], 0)
    top, left = -(-missing_y // 2), -(-missing_x // 2)
    images = F.pad(images, (left, missing_x - left, top, missing_y - top))
    y, x = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, y : y + height, x : x + width]
