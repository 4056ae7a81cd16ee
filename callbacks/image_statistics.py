"""Statistics of pictures that no reward asks for. A policy that learns to please the reward's network instead of an eye
tends to move one of them: over-saturated colours, noise or grids, hard outlines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EDGE = 0.1  # a step of brightness between neighbours that counts as an edge


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


@torch.no_grad()
def compared(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """Each statistic of the reconstructions over that of the originals, both averaged over N: [], 1 is alike."""
    statistics = {"saturation": saturation, "high_frequency": high_frequency, "edge_density": edge_density}
    return {
        name: of(reconstructions.float()).mean() / of(originals.float()).mean().clamp(min=1e-6)
        for name, of in statistics.items()
    }
