"""Resizing of pictures as PIL does it, on a batch of tensors, with gradients; and what comes after it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """[N, C, H, W] in [0, 1] -> [N, C, *size] in [0, 1], antialiased.

    PIL resizes along the rows, cuts what overshoots, and then resizes along the columns; cutting once, at the end, is
    up to 30 of 255 levels off where black meets white. What is left is PIL's rounding to 8 bits between the two:
    rounded as well, the results differ by 1 level at most.

    Args:
        mode: "bicubic", or "bilinear", which does not overshoot.
    """
    height, width = size
    for shape in ((images.shape[2], width), (height, width)):
        images = F.interpolate(images, shape, mode=mode, antialias=True).clamp(0, 1)
    return images


def normalized(images: Tensor, preprocessor: Any) -> Tensor:
    """[B, 3, H, W] by the mean and the standard deviation of each channel, as that image processor has them."""
    mean, std = images.new_tensor(preprocessor.image_mean), images.new_tensor(preprocessor.image_std)
    return (images - mean[:, None, None]) / std[:, None, None]
