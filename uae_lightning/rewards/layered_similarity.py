"""LayeredSimilarity: one frozen network, several levels of it, a cosine each.

DualToken (arXiv 2503.14324) takes pixels from a shallow layer of one vision tower and meaning from a deep one, each
with a loss of its own, since both at one layer spoil each other. Here the same split serves a reward: a run says what
each level counts, and may train captions and pictures on different ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from uae_lightning.ranges import Count, Finite, checked
from uae_lightning.rewards.feature_maps import FeatureMaps
from uae_lightning.rewards.vision_features import EmbeddingSimilarity
from uae_lightning.types import RewardOutput


@checked
@dataclass
class Level:
    """Layers that are compared together.

    Args:
        layers: their places in the network, from 0; -1 is the last.
        weight: what their cosine counts.
    """

    layers: list[int]
    weight: Finite = 1.0


@checked
class LayeredSimilarity(EmbeddingSimilarity):
    """Sum of weight x cosine over levels; the cosine of a level is the mean over its layers and cells x cells places.

    The parts are the cosines by the names of the levels. Levels differ in spread: equal weights are not equal influence
    (`reward_balance: decoupled` makes them so).

    Args:
        network: whose maps are compared.
        levels: name -> layers and weight.
        cells: places along each side, over which maps are averaged before they are compared.
        micro_batch: pictures at a time.

    Raises:
        ValueError: there is no level, a level has no layer or one that the network has not, or there are more cells
            than the smallest map has places.
    """

    def __init__(
        self, network: FeatureMaps, levels: dict[str, Level], cells: Count = 3, micro_batch: Count = 32
    ) -> None:
        super().__init__(micro_batch)
        if cells > network.places:
            raise ValueError(f"cells must be at most {network.places}, the width of the smallest map; got {cells}")
        if not levels:
            raise ValueError("LayeredSimilarity needs at least one of `levels`: NAME: {layers: [0, 1], weight: 1.0}")
        for name, level in levels.items():
            check_layers(name, level.layers, len(network.widths))
        self.network, self.levels, self.cells = network, levels, cells
        self.sizes = [sum(network.widths[at] for at in level.layers) * cells**2 for level in levels.values()]
        self.freeze()

    def embed(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, E]: the unit vectors of a level's places and layers behind each other, scaled to length
        1, so that one inner product is the mean of all its cosines; then the next level's."""
        maps = self.network(images)
        return torch.cat([self.level_of([maps[at] for at in level.layers]) for level in self.levels.values()], dim=1)

    def level_of(self, maps: list[Tensor]) -> Tensor:
        """[N, C_l, h_l, w_l] each -> [N, E_level], of length 1."""
        vectors = []
        for features in maps:
            places = F.adaptive_avg_pool2d(features.float(), self.cells).flatten(2)  # [N, C_l, cells^2]
            vectors.append(F.normalize(places, dim=1).flatten(1))
        return torch.cat(vectors, dim=1) / (len(vectors) * self.cells**2) ** 0.5

    def compare(self, a: Tensor, b: Tensor) -> RewardOutput:
        products = (a * b).split(self.sizes, dim=1)
        parts = {name: product.sum(-1) for name, product in zip(self.levels, products, strict=True)}
        weights = {name: level.weight for name, level in self.levels.items()}
        return RewardOutput(sum(weights[name] * part for name, part in parts.items()), parts, weights)


def check_layers(name: str, layers: list[int], count: int) -> None:
    """Raises ValueError where a level asks for layers that a network of `count` layers has not."""
    if not layers or not all(-count <= at < count for at in layers):
        raise ValueError(
            f"levels.{name}.layers must name layers of the network, 0 to {count - 1} (or -{count} to -1 from its end), "
            f"at least one; got {layers}"
        )
