"""ClipScore: does the picture show what its text says? Cosine of both under a CLIP (CLIPScore, arXiv 2104.08718)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from uae_lightning.models.loading import load, reading
from uae_lightning.paths import resolve, weightless
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.vision_features import FILES, FrozenReward, Preprocessing, vision_folder
from uae_lightning.types import RewardInput, RewardOutput

OF_TEXT = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model"]


@checked
class ClipScore(FrozenReward):
    """Cosine of the embeddings of a picture and of its text, by any CLIP-like model of transformers with both towers
    (CLIP, SigLIP). In [-1, 1]; good pairs of CLIP-L are near 0.3. No original is needed.

    A CLIP reads 77 tokens, a SigLIP 64: what a text says after them does not count, which is why this judges prompts
    rather than long captions.

    Args:
        model: hub id or local folder.
        processor: hub id or local folder of tokenizer and preprocessor_config.json; None: they lie beside the model.
        micro_batch: pictures at a time.
    """

    name = "clip_score"
    needs_originals = False

    def __init__(
        self, model: str = "openai/clip-vit-large-patch14", processor: str | None = None, micro_batch: Count = 32
    ) -> None:
        super().__init__()
        self.micro_batch = micro_batch
        folder = vision_folder(model, type(self).__name__, [*FILES, *OF_TEXT])
        beside = folder if processor is None else resolve(processor, ["*config.json", *OF_TEXT])
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind.endswith(("vision_model", "text_model")):
            raise ValueError(f"{type(self).__name__}: {folder} is a {kind}: name a model with both towers")
        self.network = load(AutoModel, folder, torch.float32)
        self.preprocess = Preprocessing.of(beside)
        self.places = self.network.config.text_config.max_position_embeddings
        self.tokenizer = None  # given by who plans without one
        if not weightless():
            self.tokenizer = tokenizer_in(beside, type(self).__name__)
        self.freeze()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        # the drawings of a prompt stand side by side: read the prompt once, not G times
        texts = list(dict.fromkeys(inputs.captions))
        of_texts = torch.cat([self.read(texts[at : at + self.micro_batch]) for at in self.starts(len(texts))])
        rows = [texts.index(text) for text in inputs.captions]
        seen = torch.cat([self.see(images) for images in inputs.reconstructions.split(self.micro_batch)])
        total = self.scaled((seen * of_texts[rows]).sum(-1))
        return RewardOutput(total, {self.name: total})

    def starts(self, count: int) -> range:
        return range(0, count, self.micro_batch)

    def scaled(self, cosine: Tensor) -> Tensor:
        """What is made of the cosines [N]."""
        return cosine

    def see(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] in [0, 1] -> [n, E] of length 1."""
        features = self.network.get_image_features(pixel_values=self.preprocess(images))
        return F.normalize(features.pooler_output.float(), dim=-1)

    def read(self, texts: list[str]) -> Tensor:
        """n texts -> [n, E] of length 1. Padded to all places, as SigLIP is trained; a CLIP's end of text comes before
        the padding, which it cannot see."""
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.places, truncation=True, return_tensors="pt"
        )["input_ids"]
        features = self.network.get_text_features(input_ids=tokens.to(self.preprocess.image_mean.device))
        return F.normalize(features.pooler_output.float(), dim=-1)


def tokenizer_in(folder: Path, owner: str) -> PreTrainedTokenizerBase:
    """Raises FileNotFoundError where there is none, ValueError where it is damaged."""
    if not any((folder / name).is_file() for name in OF_TEXT if "*" not in name) and not [*folder.glob("*.model")]:
        raise FileNotFoundError(
            f"{owner}: no tokenizer in {folder}: copy tokenizer.json and tokenizer_config.json there, or name with "
            "`processor` a folder that has them"
        )
    with reading("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder)
