"""The records that pass between parts. Letters: B images in a batch, G samples of each, N = B*G, T tokens, L text
positions, D conditioning width, K E places and width of visual features, S sampler steps, C h w latents, H W pixels.
Images are float in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.ranges import Count, NonNegative, checked

TOTAL = "total"  # of a reward, where parts are called by name


@dataclass  # not frozen: Lightning rebuilds it field by field to move it or to change its precision
class Batch:
    """What every data module yields."""

    images: Tensor  # [B, 3, H, W] in [0, 1]; [B, 3, 0, 0] where there are none: of a cache, of prompts alone
    captions: list[str]  # B captions for decoder pre-training, or prompts to draw; empty strings where there are none
    keys: list[str]  # B stable names, the same for the same picture in every run
    weights: Tensor | None = None  # [B, 1, H, W] how much each pixel counts in flow matching; None: all the same
    latents: Tensor | None = None  # [B, C, h, w] of the images, from a cache
    embedded: tuple[Tensor, Tensor] | None = None  # what `Encoder.embed` gives of the captions, from a cache
    prompts: list[str] | None = None  # B terse prompts of which the captions are complete ones; None: there are none
    metadata: list[dict[str, Any]] | None = None  # B, what a file says of each beside picture and text; None: nothing

    @property
    def has_images(self) -> bool:
        return self.images.numel() > 0

    def metadata_of_each(self, times: int) -> list[dict[str, Any]] | None:
        """Of `times` samples of each picture or prompt, next to each other."""
        return None if self.metadata is None else [row for row in self.metadata for _ in range(times)]

    def given_captions(self, asking: str, way_out: str) -> list[str]:
        """Those of all pictures; a ValueError that says who was asking and what else can be done where one has none."""
        if without := [key for key, text in zip(self.keys, self.captions, strict=True) if not text]:
            raise ValueError(
                f"{asking} learns from captions, and {without[0]} has none: train on data with captions, or {way_out}"
            )
        return self.captions


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
class CaptionTurn:
    """How an encoder is asked for a caption, for who asks the same model elsewhere."""

    messages: list[dict[str, Any]]  # chat turns; {"type": "image"} stands where the picture goes
    tokens: list[int]  # of the prompt as the encoder reads it, those of the picture included
    ends: list[int]  # tokens after which a caption is finished
    never: list[int]  # tokens that are never sampled
    processor: dict[str, Any]  # options of the model's own processor that leave the size of a picture alone


@dataclass(frozen=True)
class Conditioning:
    """What a decoder is conditioned on."""

    states: Tensor  # [N, L, D]
    mask: Tensor  # [N, L] bool, False at padding, which must not reach the picture
    visual: Tensor | None = None  # [N, K, E] predicted visual features, beside the text; None: there are none

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return self._each(lambda tensor: tensor[index])

    def repeat(self, times: int) -> Conditioning:
        """Each row `times` times, copies next to each other."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, 0))

    def cropped(self) -> Conditioning:
        """Without the columns that are padding in every row; padding stands on the right."""
        if self.mask.is_meta:  # without values nobody knows
            return self
        length = self.mask.shape[1] - int((~self.mask).all(0).sum())
        return Conditioning(self.states[:, :length], self.mask[:, :length], self.visual)

    def drop(self, rows: Tensor) -> Conditioning:
        """The rows [N] bool become unconditional: one zero state, as a decoder's own unconditional branch has it, and
        visual features that are zero."""
        first = torch.arange(self.mask.shape[1], device=self.mask.device) == 0
        states = self.states.masked_fill(rows[:, None, None], 0)
        visual = None if self.visual is None else self.visual.masked_fill(rows[:, None, None], 0)
        return Conditioning(states, self.mask.where(~rows[:, None], first), visual)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        visual = None if self.visual is None else change(self.visual)
        return Conditioning(change(self.states), change(self.mask), visual)


@checked
@dataclass
class LoRA:
    """Low-rank adapters (arXiv 2106.09685).

    Args:
        rank: of the update matrices.
        alpha: the update is scaled by alpha / rank.
        targets: a regular expression on full module names, or a list of name endings.
        init: peft's `init_lora_weights`; "gaussian" is the released UAE's.
    """

    rank: Count = 32
    alpha: Count = 64
    targets: str | list[str] | None = None
    init: str = "gaussian"


Learning = Literal["all"] | LoRA | None  # all weights, adapters on them, or nothing


@dataclass
class Learn:
    """What a stage trains of each part: "all" weights, a LoRA, or nothing."""

    encoder: Learning = None
    projector: Learning = None
    decoder: Learning = None


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

    @property
    def forwards(self) -> int:
        """Evaluations of the decoder for a picture."""
        return self.branches * self.steps

    @property
    def branches(self) -> int:
        """Evaluations in a step: with guidance two."""
        return 1 if self.guidance == 1 else 2


@dataclass(frozen=True)
class Work:
    """What training spends on one picture of a batch: what studies compare arms by, and estimate their time from.

    Args:
        decoder_forwards: passes of the decoder for one picture; one with gradients counts three times, since going back
            costs about as much as two passes forward.
        captions_written: by the encoder.
        captions_trained: from which the encoder learns.
    """

    decoder_forwards: int
    captions_written: int = 0
    captions_trained: int = 0


@dataclass(frozen=True)
class RewardInput:
    originals: Tensor  # [N, 3, H, W] in [0, 1]; [N, 3, 0, 0] where pictures are drawn from texts alone
    reconstructions: Tensor  # [N, 3, H, W] in [0, 1]
    captions: list[str]  # N
    given: Tensor | None = None  # [N] bool, the caption is the data's own; None: the encoder wrote all of them
    metadata: list[dict[str, Any]] | None = None  # N, `Batch.metadata` of each; None: there is none

    def __getitem__(self, rows: slice) -> RewardInput:
        given = None if self.given is None else self.given[rows]
        metadata = None if self.metadata is None else self.metadata[rows]
        return RewardInput(self.originals[rows], self.reconstructions[rows], self.captions[rows], given, metadata)


@dataclass(frozen=True)
class RewardOutput:
    total: Tensor  # [N] float32
    parts: dict[str, Tensor]  # name -> [N] float32; a single reward has one part, itself
    weights: dict[str, float] | None = None  # of the parts whose weighted sum is the total; None: it is no such sum

    def terms(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Parts and weights that sum to the total: itself where it is not told what it is the sum of."""
        if self.weights is None:
            return {TOTAL: self.total}, {TOTAL: 1.0}
        return {name: self.parts[name] for name in self.weights}, self.weights

    def plus(self, name: str, values: Tensor, weight: float) -> RewardOutput:
        """With one more term, `values` [N]."""
        parts, weights = self.terms()
        return RewardOutput(self.total + weight * values, self.parts | parts | {name: values}, weights | {name: weight})

    def each(self, change: Callable[[Tensor], Tensor]) -> RewardOutput:
        """All values [N] changed alike, such as to the means of groups."""
        return RewardOutput(change(self.total), {n: change(part) for n, part in self.parts.items()}, self.weights)


@dataclass(frozen=True)
class ValidationOutput:
    """What a stage's validation step returns; the reward callback scores it."""

    inputs: RewardInput
    caption_tokens: Tensor  # [N] tokens of each caption, end-of-text included
    keys: list[str]  # N
    drawn: list[str] | None = None  # N texts of which pictures were drawn; None: the captions that the reward reads
