"""Draw, judge, draw again: of several drawings of a text a verifier keeps the best.

One round is best-of-N. A later round starts from the best picture so far, at a noise level, as interleaved reasoning
generation (arXiv 2509.06945) draws its first picture again; nothing is trained here, and what is read back is a score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Reward
from uae_lightning.ranges import Count, ShareAbove0, checked
from uae_lightning.types import RewardInput


@dataclass(frozen=True)
class Refined:
    """The best drawing of each of N texts."""

    latents: Tensor  # [N, C, h, w]
    pictures: Tensor  # [N, 3, H, W] in [0, 1]
    scores: Tensor  # [N] by the verifier

    def or_better(self, other: Refined) -> Refined:
        """Row by row the one with the higher score; of equals this one."""
        worse = other.scores > self.scores  # [N]
        rows = worse[:, None, None, None]
        latents, pictures = other.latents.where(rows, self.latents), other.pictures.where(rows, self.pictures)
        return Refined(latents, pictures, other.scores.where(worse, self.scores))


@checked
@dataclass
class Refinement:
    """How often a text is drawn, and by what its best drawing is found.

    Args:
        verifier: any reward; where there is no original, one that needs none (`Reward.needs_originals`).
        rounds: each starts from the best drawing of those before it.
        candidates: drawings of a text in a round.
        restart: noise level at which later rounds start; at 1 they draw anew.
    """

    verifier: Reward
    rounds: Count = 1
    candidates: Count = 4
    restart: ShareAbove0 = 0.8

    def check(self, *, originals: bool) -> None:
        """Raises ValueError where the verifier cannot judge what is drawn, with originals or without."""
        if self.verifier.needs_originals and not originals:
            raise ValueError(
                f"{type(self.verifier).__name__} compares with an original, which a picture drawn from a text does not "
                "have: give a verifier that judges by the text, such as uae_lightning.rewards.caption_likelihood."
                "CaptionLikelihood"
            )

    def calls(self, model: AutoEncoder) -> int:
        """Evaluations of the decoder for a text."""
        first, again = (model.decoder.evaluations(model.sampling, level) for level in (1.0, self.restart))
        return self.candidates * (first + (self.rounds - 1) * again)

    @torch.no_grad()
    def draw(
        self,
        model: AutoEncoder,
        texts: list[str],
        noise: Callable[[int], Tensor],
        originals: Tensor | None = None,
        prompts: list[str] | None = None,
    ) -> tuple[Refined, Tensor]:
        """The best drawings, and the scores [N] of the first ones.

        Args:
            texts: what is drawn, N.
            noise: number of a drawing, from 0 on -> [N, C, h, w].
            originals: [N, 3, H, W] where the texts are captions of pictures.
            prompts: what the texts were rewritten from, by which they are judged.

        Raises:
            ValueError: the verifier needs originals and there are none, or it gives NaN.
        """
        self.check(originals=originals is not None)
        conditioning = model.read(texts)
        if originals is None:
            originals = torch.empty(len(texts), 3, 0, 0, device=model.device)

        def candidate(number: int, start: Refined | None) -> Refined:
            if start is None or self.restart == 1:
                latents = model.draw_latents(conditioning, noise(number))
            else:
                latents = model.redraw_latents(start.latents, self.restart, conditioning, noise(number))
            pictures = model.decoder.decode_latents(latents)
            scores = self.verifier(RewardInput(originals, pictures, prompts or texts)).total
            if scores.isnan().any():
                raise ValueError(f"the verifier {type(self.verifier).__name__} gives NaN: nothing is the best of it")
            return Refined(latents, pictures, scores)

        best = first = candidate(0, None)
        start = None
        for number in range(1, self.rounds * self.candidates):
            if number % self.candidates == 0:  # a new round
                start = best
            best = best.or_better(candidate(number, start))
        return best, first.scores


def noises(model: AutoEncoder, size: int, seed: int) -> Callable[[int], Tensor]:
    """Noise [size, C, h, w] by the number of the drawing; the first is `model.noise` of the seed."""

    def noise(number: int) -> Tensor:
        return model.noise(size, seed_of(seed, number))

    return noise


def seed_of(seed: int, number: int) -> int:
    """Of the drawing with that number; the first has the seed itself."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
