"""PickScore (arXiv 2305.01569): which picture of a prompt do people like? A CLIP-H trained on their choices."""

from __future__ import annotations

from torch import Tensor

from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.clip_score import ClipScore


@checked
class PickScore(ClipScore):
    """Cosine of picture and prompt times the model's logit scale: a difference of 1 between two pictures of a prompt is
    odds of e to 1. Its weights come without tokenizer and preprocessor, which are those of the CLIP-H it started from.

    Args:
        model, processor, micro_batch: as in ClipScore.
    """

    name = "pick_score"

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        micro_batch: Count = 16,
    ) -> None:
        super().__init__(model, processor, micro_batch)

    def scaled(self, cosine: Tensor) -> Tensor:
        return cosine * self.network.logit_scale.exp()
