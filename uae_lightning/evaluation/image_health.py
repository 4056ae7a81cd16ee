"""Statistics of pictures that no reward asks for. A policy that learns to please the reward's network instead of an eye
tends to move one of them: over-saturated colors, noise or grids, hard outlines, a few flat colors.

Symbols: N pictures [N, 3, H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    return {
        name: mean(of(reconstructions.float())) / mean(of(originals.float())).clamp(min=1e-6)
        for name, of in STATISTICS.items()
    }


@torch.no_grad()
def image_health(originals: Tensor, reconstructions: Tensor) -> dict[str, list[float]]:
    """Each statistic by its name for the reconstructions, by NAME/original for the originals; an item is a picture."""
    pairs = {"": reconstructions, "/original": originals}
    return {f"{name}{of}": f(x.float()).tolist() for of, x in pairs.items() for name, f in STATISTICS.items()}


def summarise_image_health(values: dict[str, list[float]]) -> dict[str, dict[str, float | int]]:
    """Each statistic's mean over reconstructions, divided by that over originals; 1 is alike."""
    return {name: ratio_interval(values[name], values[f"{name}/original"]) for name in STATISTICS}


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int]:
    """Ratio of two sums over the same items, with the percentile interval of the paired bootstrap over the items.

    Resamples whose denominator is 0 say nothing of the ratio and are left out.

    Raises:
        ValueError: the lists differ in length, have fewer than 2 items or one that is not finite, or the denominators
            are negative or all 0.
    """
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"a ratio needs two lists of the same 2 or more items, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or (b < 0).any() or not b.any():
        raise ValueError("a ratio needs finite values, and denominators of at least 0 that are not all 0")
    picks = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    above, below = a[picks].sum(1), b[picks].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(above[below > 0] / below[below > 0], [tail, 1 - tail])
    return {"mean": float(a.sum() / b.sum()), "low": float(low), "high": float(high), "n": len(a)}
