"""Penalties on captions, whatever was drawn of them: for being too long, for saying a thing again.

They are at most 0, and made for a `WeightedSum` with a reward of pictures. A reward sees texts, so words are counted in
place of tokens, as `data.words` does in any language. Of a decoder's group all captions are the same: they teach an
encoder.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from uae_lightning.data.words import REPEATED, count_words, repetition, words_of
from uae_lightning.interfaces import Reward
from uae_lightning.ranges import Count, checked
from uae_lightning.types import RewardInput, RewardOutput


class CaptionPenalty(Reward):
    """Base: minus the `penalty` of each caption, which is from 0 to 1."""

    name: str  # of its only part
    needs_originals = False

    @abstractmethod
    def penalty(self, text: str) -> float: ...

    def forward(self, inputs: RewardInput) -> RewardOutput:
        penalties = [self.penalty(text) for text in inputs.captions]
        total = 0 - torch.tensor(penalties, device=inputs.reconstructions.device)
        return RewardOutput(total, {self.name: total})


@checked
class OverlongPenalty(CaptionPenalty):
    """DAPO's soft overlong punishment (arXiv 2503.14476 eq. 13): 0 up to `limit - buffer` words, from there down a
    straight line to -1 at `limit` words, and -1 beyond.

    Captions cut at the limit on tokens are EncoderRL's: `mask_cut_captions`, `cut_penalty`.

    Args:
        limit: words.
        buffer: words over which the penalty grows.

    Raises:
        ValueError: the buffer is longer than the limit.
    """

    name = "overlong"

    def __init__(self, limit: Count, buffer: Count) -> None:
        super().__init__()
        if buffer > limit:
            raise ValueError(f"buffer must not exceed limit, got {buffer} and {limit} words: a caption has 0 at least")
        self.limit, self.buffer = limit, buffer

    def penalty(self, text: str) -> float:
        return min(max((count_words(text) - self.limit) / self.buffer + 1, 0.0), 1.0)


@checked
class RepetitionPenalty(CaptionPenalty):
    """Minus the share of a caption's runs of `size` words that came before in it (arXiv 2502.03373, appendix C.2: of
    tokens); 0 where a caption is shorter.

    Args:
        size: words of a run. Short ones are also those of a list whose entries are phrased alike.
    """

    name = "repetition"

    def __init__(self, size: Count = REPEATED) -> None:
        super().__init__()
        self.size = size

    def penalty(self, text: str) -> float:
        return repetition(words_of(text), self.size)
