"""Generate: several drawings of a prompt, the best of them first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from uae_lightning.app.drawing import MOST_CANDIDATES, Settings, alone, check, checked_text, drawn, sampled
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.data.images import as_picture
from uae_lightning.interfaces import Reward
from uae_lightning.refinement import seed_of
from uae_lightning.types import RewardInput


@dataclass(frozen=True)
class Candidate:
    """One drawing; `uae generate --seed` draws it again."""

    picture: Image.Image
    seed: int
    score: float


@dataclass(frozen=True)
class Generated:
    """How far it has come."""

    prompt: str
    text: str  # what is drawn: the prompt, or what the encoder has made of it
    of: int  # candidates there will be
    verifier: str
    candidates: tuple[Candidate, ...] = ()  # the best first
    drawing: Image.Image | None = None  # the one under way
    step: int = 0


def generate(
    model: AutoEncoder, verifier: Reward, prompt: str, settings: Settings, *, candidates: int = 1, rewrite: bool = False
) -> Iterator[Generated]:
    """Draws a prompt and ranks the drawings by what the verifier says of picture and prompt.

    The first candidate has the noise of the seed, later ones that of `refinement.seed_of`.
    """
    prompt, model = checked_text(prompt), sampled(model, settings)
    check("candidates", candidates, 1, MOST_CANDIDATES)
    text = rewritten(model, prompt, settings.seed) if rewrite else prompt
    now = Generated(prompt, text, int(candidates), verifier.title())
    yield now
    for number in range(now.of):
        seed, image = seed_of(settings.seed, number), None
        for step, image in enumerate(drawn(model, text, seed), 1):
            now = replace(now, drawing=as_picture(image), step=step)
            yield now
        made = Candidate(as_picture(image), seed, score(verifier, image, prompt))
        ranked = sorted((*now.candidates, made), key=lambda candidate: -candidate.score)
        now = replace(now, candidates=tuple(ranked), drawing=None, step=0)
        yield now


@torch.no_grad()
def rewritten(model: AutoEncoder, prompt: str, seed: int) -> str:
    with alone:
        return model.rewrite([prompt], 1, seed).texts[0]


@torch.no_grad()
def score(verifier: Reward, image: Tensor, prompt: str) -> float:
    """Of a picture [3, H, W] without an original."""
    nothing = torch.empty(1, 3, 0, 0, device=image.device)
    return verifier(RewardInput(nothing, image[None], [prompt])).total.item()
