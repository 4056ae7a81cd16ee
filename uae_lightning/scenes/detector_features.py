"""DetectorFeatures: cosine of what the scene detector sees in every cell; a judge of reports, never a reward.

Its answers are right or wrong; its features also tell a faint cat from no cat, which orders poor reconstructions.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from uae_lightning.paths import resolve
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.vision_features import EmbeddingSimilarity
from uae_lightning.scenes.detector import SceneDetector


@checked
class DetectorFeatures(EmbeddingSimilarity):
    """Cosine of the features of all nine cells behind each other.

    Pooled over the cells they would forget which object stands where: two objects that change places then cost 0.004
    instead of 0.17 and more (ours, measured).

    Args:
        path: folder of a SceneDetector, "shipped:NAME" or an ordinary path.
        micro_batch: pictures at a time.
    """

    name = "detector_features"

    def __init__(self, path: str | Path = "shipped:scenes/detector", micro_batch: Count = 64) -> None:
        super().__init__(micro_batch)
        self.detector = SceneDetector.from_folder(resolve(path))
        self.freeze()

    def embed(self, images: Tensor) -> Tensor:
        """[N, 3, 96, 96] -> [N, 9 D]."""
        pixels = 2 * images.to(self.detector.background.weight.dtype) - 1
        tiles = self.detector.trunk(pixels)  # [N, D, 3, 3]
        return F.normalize(tiles.flatten(1).float(), dim=-1)
