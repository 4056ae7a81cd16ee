"""The records that pass between parts. Letters: B images in a batch, G samples of each, N = B*G, T tokens, L text
positions, D conditioning width, S sampler steps, C h w latents, H W pixels. Images are float in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uae_lightning.ranges import Count, NonNegative, checked


@dataclass  # not frozen: Lightning rebuilds it field by field to move it or to change its precision
class Batch:
    """What every data module yields."""

    images: Tensor  # [B, 3, H, W] in [0, 1]; [B, 3, 0, 0] where the batch comes from a cache
    captions: list[str]  # B captions for decoder pre-training; empty strings where there are none
    keys: list[str]  # B stable names, the same for the same picture in every run
    weights: Tensor | None = None  # [B, 1, H, W] how much each pixel counts in flow matching; None: all the same
    latents: Tensor | None = None  # [B, C, h, w] of the images, from a cache
    embedded: tuple[Tensor, Tensor] | None = None  # what `Encoder.embed` gives of the captions, from a cache


@dataclass(frozen=True)
class Captions:
    """Captions sampled from an encoder, the G of one image next to each other."""

    texts: list[str]  # N
    tokens: Tensor  # [N, T] the sampled tokens, end-of-text included, right-padded
    mask: Tensor  # [N, T] bool, True at sampled tokens
    logp: Tensor | None = None  # [N, T] with which each token was sampled; None where nobody knows
    cut: Tensor | None = None  # [N] bool, the limit on tokens ended it and no end-of-text; None where nobody knows

    @property
    def lengths(self) -> Tensor:
        """[N] number of sampled tokens, end-of-text included."""
        return self.mask.sum(1)


@dataclass(frozen=True)
class Conditioning:
    """What a decoder is conditioned on."""

    states: Tensor  # [N, L, D]
    mask: Tensor  # [N, L] bool, False at padding, which must not reach the picture

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return Conditioning(self.states[index], self.mask[index])

    def repeat(self, times: int) -> Conditioning:
        """Each row `times` times, copies next to each other."""
        return Conditioning(self.states.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def cropped(self) -> Conditioning:
        """Without the columns that are padding in every row; padding stands on the right."""
        if self.mask.is_meta:  # without values nobody knows
            return self
        length = self.mask.shape[1] - int((~self.mask).all(0).sum())
        return Conditioning(self.states[:, :length], self.mask[:, :length])

    def drop(self, rows: Tensor) -> Conditioning:
        """The rows [N] bool become unconditional: one zero state, as a decoder's own unconditional branch has it."""
        first = torch.arange(self.mask.shape[1], device=self.mask.device) == 0
        states = self.states.masked_fill(rows[:, None, None], 0)
        return Conditioning(states, self.mask.where(~rows[:, None], first))


@checked
@dataclass
class Sampling:
    """How pictures are sampled.

    Args:
        steps: evaluations of the decoder per picture (twice as many with guidance).
        guidance: classifier-free guidance; 1 leaves the unconditional branch out, 0 the caption.
    """

    steps: Count = 10
    guidance: NonNegative = 1.0


@dataclass(frozen=True)
class RewardInput:
    originals: Tensor  # [N, 3, H, W] in [0, 1]
    reconstructions: Tensor  # [N, 3, H, W] in [0, 1]
    captions: list[str]  # N


@dataclass(frozen=True)
class RewardOutput:
    total: Tensor  # [N] float32
    parts: dict[str, Tensor]  # name -> [N] float32; a single reward has one part, itself


@dataclass(frozen=True)
class ValidationOutput:
    """What a stage's validation step returns; the reward callback scores it."""

    inputs: RewardInput
    caption_tokens: Tensor  # [N] tokens of each caption, end-of-text included
    keys: list[str]  # N
