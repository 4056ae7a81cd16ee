"""DinoSimilarity: cosine of DINOv2 or DINOv3 CLS tokens, one of the four judges of UAE's Unified-Bench."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from uae_lightning.models.loading import load
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.vision_features import EmbeddingSimilarity, Preprocessing, vision_folder


@checked
class DinoSimilarity(EmbeddingSimilarity):
    """Cosine of the CLS tokens (last layer, normalised) of a self-supervised vision model of transformers.

    Args:
        model: hub id or local folder, with its preprocessor_config.json.
        micro_batch: pictures at a time.
    """

    name = "dino_similarity"

    def __init__(self, model: str = "facebook/dinov2-large", micro_batch: Count = 32) -> None:
        super().__init__(micro_batch)
        folder = vision_folder(model, type(self).__name__)
        self.network = load(AutoModel, folder, torch.float32, unread=r"^pooler\.")
        self.preprocess = Preprocessing.of(folder)
        self.freeze()

    def embed(self, images: Tensor) -> Tensor:
        states = self.network(pixel_values=self.preprocess(images)).last_hidden_state  # [N, 1 + patches, E], CLS first
        return F.normalize(states[:, 0].float(), dim=-1)
