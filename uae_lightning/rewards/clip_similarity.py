"""ClipSimilarity: the reward of UAE (arXiv 2509.09666): R(x, x~) = cos(f(x), f(x~)), f the CLIP image embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

from uae_lightning.models.loading import load
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.vision_features import EmbeddingSimilarity, Preprocessing, vision_folder


@checked
class ClipSimilarity(EmbeddingSimilarity):
    """Cosine of the image embeddings of any CLIP-like model of transformers (CLIP, SigLIP, their vision towers).

    Args:
        model: hub id, local folder or "shipped:NAME", with its preprocessor_config.json.
        micro_batch: pictures at a time.
    """

    name = "clip_similarity"

    def __init__(self, model: str = "openai/clip-vit-large-patch14", micro_batch: Count = 32) -> None:
        super().__init__(micro_batch)
        folder = vision_folder(model, type(self).__name__)
        # AutoModel would drop a vision tower's projection to the embedding
        vision_only = AutoConfig.from_pretrained(folder).model_type == "clip_vision_model"
        self.network = load(CLIPVisionModelWithProjection if vision_only else AutoModel, folder, torch.float32)
        if hasattr(self.network, "text_model"):
            self.network.text_model = None  # half of the weights, never asked
        self.preprocess = Preprocessing.of(folder)
        self.freeze()

    def embed(self, images: Tensor) -> Tensor:
        pixels = self.preprocess(images)
        if hasattr(self.network, "get_image_features"):
            features = self.network.get_image_features(pixel_values=pixels)
            features = getattr(features, "pooler_output", features)  # a tensor before transformers 5
        else:
            output = self.network(pixel_values=pixels)
            features = getattr(output, "image_embeds", None)
            features = output.pooler_output if features is None else features
        return F.normalize(features.float(), dim=-1)
