"""Statistics of pictures that no reward asks for. A policy that learns to please the reward's network instead of an eye
tends to move one of them: over-saturated colors, noise or grids, hard outlines, a few flat colors.

Symbols: N pictures [N, 3, H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uae_lightning.evaluation.statistics import Figures, Items, Statistic
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite

EDGE = 0.1  # a step of brightness between neighbours that counts as an edge
SHADES = 8  # of each channel in the histogram of colors


def saturation(images: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> [N]: mean of max - min over the channels."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def high_frequency(images: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N]: mean square of what a 3 x 3 box blur takes away; 0 for a flat picture."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (images - blurred).square().mean((1, 2, 3))


def edge_density(images: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> [N]: share of pixels whose brightness differs by EDGE from the next one."""
    gray = images.mean(1)
    across, down = gray.diff(dim=2)[:, :-1], gray.diff(dim=1)[:, :, :-1]
    return (across.square() + down.square() > EDGE**2).float().mean((1, 2))


def color_entropy(images: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> [N]: bits of the histogram of its colors, SHADES to a channel; 0 for a flat picture."""
    shades = (images * SHADES).long().clamp(0, SHADES - 1)
    colors = ((shades[:, 0] * SHADES + shades[:, 1]) * SHADES + shades[:, 2]).flatten(1)  # [N, H * W]
    counts = torch.zeros(len(images), SHADES**3, device=images.device)
    counts.scatter_add_(1, colors, torch.ones_like(colors, dtype=counts.dtype))
    return torch.special.entr(counts / colors.shape[1]).sum(1) / np.log(2)


STATISTICS = {
    "saturation": saturation,
    "high_frequency": high_frequency,
    "edge_density": edge_density,
    "color_entropy": color_entropy,
}


@torch.no_grad()
def compared(
    originals: Tensor, reconstructions: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean
) -> dict[str, Tensor]:
    """Each statistic of the reconstructions over that of the originals, both averaged over N: [], 1 is alike.

    On several devices `mean` averages over their pictures as well: the mean of ratios is another number.
    """
    drawn, given = statistics(reconstructions, mean), statistics(originals, mean)
    return {name: drawn[name] / given[name].clamp(min=1e-6) for name in STATISTICS}


@torch.no_grad()
def statistics(images: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean) -> dict[str, Tensor]:
    """Each statistic of pictures [N, 3, H, W], averaged over N: []."""
    return {name: mean(of(images.float())) for name, of in STATISTICS.items()}


class ImageHealth(Suite):
    """Each statistic by its name for the reconstructions, by NAME/original for the originals; an item is a picture."""

    about = "statistics of the pictures that no reward asks for, over those of the originals; 1 is alike"
    neither = tuple(STATISTICS)

    def measure(self, subject: Subject) -> Items:
        return image_health(subject.round_trip.originals, subject.round_trip.reconstructions)

    def statistics(self, items: Items) -> dict[str, Statistic]:
        return {name: Statistic((name, f"{name}/original"), "ratio") for name in STATISTICS}

    def groups(self, figures: Figures) -> list[Group]:
        text = "statistics that no reward asks for, over those of the originals; 1 is alike"
        return [Group("Pictures", text, tuple(Row(name, name.replace("_", " ")) for name in STATISTICS), 2.0)]


@torch.no_grad()
def image_health(originals: Tensor, reconstructions: Tensor) -> Items:
    """The values of `ImageHealth` of pictures [N, 3, H, W]."""
    pairs = {"": reconstructions, "/original": originals}
    return {f"{name}{of}": f(x.float()).tolist() for of, x in pairs.items() for name, f in STATISTICS.items()}
