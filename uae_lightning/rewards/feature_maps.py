"""The maps of features that a frozen network has of a picture, layer by layer, for who compares pictures by place.

Symbols: N pictures, C_l h_l w_l the map of layer l. Pictures are [N, 3, H, W] in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from uae_lightning.models.loading import load
from uae_lightning.ranges import Count, NonNegative, checked
from uae_lightning.rewards.efficientnet_lite import HEAD, STAGES, STRIDE, EfficientNetLite0
from uae_lightning.rewards.vision_features import Preprocessing, vision_folder


class FeatureMaps(nn.Module, ABC):
    """A network as its layers."""

    widths: list[int]  # C_l of each layer, from the picture to the last
    places: int  # along each side of the smallest map

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> [N, C_l, h_l, w_l] of each layer."""


@checked
class EfficientNetMaps(FeatureMaps):
    """The 7 stages of EfficientNet-Lite0 and its head, of pictures in which faint texture is drowned.

    Args:
        image_size: px the network sees; a multiple of 32.
        detail: px the pictures are reduced to before that; `image_size` keeps all detail.
        dither: standard deviation of noise, the same on every picture; 0 is none.
    """

    widths = [*(stage[-1] for stage in STAGES), HEAD]

    def __init__(self, image_size: Count = 96, detail: Count = 32, dither: NonNegative = 0.1) -> None:
        super().__init__()
        if image_size % STRIDE:
            raise ValueError(f"image_size must be a multiple of {STRIDE}, got {image_size}")
        if detail > image_size:
            raise ValueError(f"detail must be at most image_size {image_size} px, got {detail}")
        self.image_size, self.detail, self.places = image_size, detail, image_size // STRIDE
        noise = torch.randn(3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", dither * noise, persistent=False)
        self.network = EfficientNetLite0.pretrained()

    def forward(self, images: Tensor) -> list[Tensor]:
        images = images.float()
        for side in (self.detail, self.image_size):
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return self.network.feature_maps(images.to(self.noise.dtype) + self.noise)


class VisionTransformerMaps(FeatureMaps):
    """The residual stream of a vision transformer: its embedded patches, and what each of its blocks leaves, before the
    last normalisation; class and register tokens are left out.

    Args:
        model: hub id, local folder or "shipped:NAME" of DINOv2, DINOv3, CLIP, SigLIP or their like, with its
            preprocessor_config.json.

    Raises:
        FileNotFoundError: `model` is neither on this machine nor to be had.
        ValueError: it is no transformer on patches.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        folder = vision_folder(model, type(self).__name__)
        network = load(AutoModel, folder, torch.float32, unread=r"^pooler\.")
        self.network = getattr(network, "vision_model", network)  # of two towers the one that sees
        config, asked = self.network.config, ("patch_size", "hidden_size", "num_hidden_layers")
        if missing := [name for name in asked if not hasattr(config, name)]:
            raise ValueError(
                f"{model} is no vision transformer: its config.json has no {missing[0]}; name DINOv2, DINOv3, CLIP or "
                "SigLIP, or take uae_lightning.rewards.feature_maps.EfficientNetMaps"
            )
        self.patch, self.widths = config.patch_size, [config.hidden_size] * (config.num_hidden_layers + 1)
        self.places = config.image_size // config.patch_size
        self.preprocess = Preprocessing.of(folder)

    def forward(self, images: Tensor) -> list[Tensor]:
        pixels = self.preprocess(images)
        rows, columns = (side // self.patch for side in pixels.shape[2:])
        layers = self.network(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [states[:, -rows * columns :].mT.unflatten(2, (rows, columns)) for states in layers]
