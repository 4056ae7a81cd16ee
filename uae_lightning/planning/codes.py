"""What it costs to write codes: a look at the pictures, and the scores of all codes at each place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uae_lightning.models.vision_codes import VisionCodes, words_of
from uae_lightning.planning.meter import Meter
from uae_lightning.types import Captions


@dataclass
class CodesGeneration:
    """Stands in for `VisionCodes.generate`, which looks at values: all codes are the first of their level."""

    encoder: VisionCodes
    meter: Meter
    cache_bytes: int = 0  # there is no text to remember

    @torch.no_grad()
    def __call__(self, images: Tensor, *, samples: int, temperature: float, max_new_tokens: int, seed: int) -> Captions:
        validating = self.meter.now is self.meter.phases.get("validation")
        with self.meter.phase("validation" if validating else "captions"):
            scores = self.encoder.head(self.encoder.features(images))
            self.meter.note(2 * scores.nbytes * samples)  # of each sample its probabilities, and noise
        first = [first for _, first in self.encoder.levels()] * self.encoder.count
        tokens = torch.tensor([first]).repeat(len(images) * samples, 1)
        texts = [words_of(first)] * len(tokens)
        return Captions(texts, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.empty(tokens.shape))
