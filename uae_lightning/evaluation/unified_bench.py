"""Unified-Bench, protocol P1 (UAE, arXiv 2509.09666): picture -> caption -> picture, and how much of it came through.

For every vision backbone the cosine between a picture and its reconstruction; their mean is the unified score. With
real models the backbones are those of the hub: `ClipSimilarity` (CLIP, LongCLIP, SigLIP2), `DinoSimilarity` (DINOv2,
DINOv3). Those of the embedded default, in conf/scenes/evaluation.yaml, differ in what they were trained on: labels of
ImageNet, captions of scenes, facts of scenes, and nothing at all.

A cosine says little by itself: to some networks any two pictures are alike. `floor` measures that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.interfaces import Reward
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.rewards.vision_features import EmbeddingSimilarity
from uae_lightning.scenes.instruments import scores

OVERALL = "overall"


def unified_bench(
    originals: Tensor, reconstructions: Tensor, backbones: Mapping[str, Reward]
) -> dict[str, list[float]]:
    """Cosine of each reconstruction to its source: name of a backbone -> N values in the order of the pictures.

    "overall" is the mean over the backbones, picture by picture.

    Args:
        originals, reconstructions: [N, 3, H, W] in [0, 1].

    Raises:
        ValueError: no backbone, one that is called "overall", or different numbers of pictures.
    """
    if not backbones or OVERALL in backbones:
        raise ValueError(f"`backbones` needs at least one, and none called {OVERALL!r}: got {sorted(backbones)}")
    if len(originals) != len(reconstructions):
        raise ValueError(f"{len(originals)} originals but {len(reconstructions)} reconstructions: give one for each")
    cosines = {name: scores(backbone, originals, reconstructions) for name, backbone in backbones.items()}
    cosines[OVERALL] = torch.stack(list(cosines.values())).mean(0)
    return {name: values.tolist() for name, values in cosines.items()}


def floor(originals: Tensor, backbones: Mapping[str, Reward]) -> dict[str, list[float]]:
    """The same of unrelated pictures, each original against the next one: where the scale of each backbone begins."""
    return unified_bench(originals, originals.roll(-1, 0), backbones)


def summarise_unified(values: Mapping[str, list[float]]) -> dict[str, dict]:
    """{"backbones": {NAME: interval}, "overall": interval} of what `unified_bench` or `floor` returns."""
    intervals = {name: mean_interval(of_pictures) for name, of_pictures in values.items()}
    overall = intervals.pop(OVERALL)
    return {"backbones": intervals, OVERALL: overall}


@checked
class PooledEfficientNet(PerceptualGrid):
    """Cosine of EfficientNet-Lite0's pooled head, the 1280 features its ImageNet classes are read from.

    The network is that of the reward PerceptualGrid, which compares all its stages by place: as a judge of a run with
    that reward it is not independent. It sees pictures reduced and dithered as there; otherwise the true scene, worn,
    scored below 95 in 100 crisp scenes with a wrong object (ours, 96 scenes), and with it above 85 in 100.
    """

    name = "efficientnet_lite0"

    def __init__(self, image_size: Count = 128, micro_batch: Count = 32) -> None:
        super().__init__(cells=1, image_size=image_size, micro_batch=micro_batch)

    def embed(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 1280]."""
        images = images.float()
        for side in (self.detail, self.image_size):
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        head = self.network.feature_maps(images + self.noise)[-1]
        return F.normalize(head.mean((2, 3)), dim=-1)


class Pixels(EmbeddingSimilarity):
    """Cosine of the pixels themselves, gray being the zero: no network, a second opinion on places and colors."""

    name = "pixels"

    def embed(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 3 H W]."""
        return F.normalize(images.float().flatten(1) - 0.5, dim=-1)
