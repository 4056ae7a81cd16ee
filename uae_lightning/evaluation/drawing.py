"""Pictures of prompts: for suites that judge what is drawn from a text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.refinement import Refinement, seed_of
from uae_lightning.terminal.progress import watched


@torch.no_grad()
def drawn(
    model: AutoEncoder,
    texts: Sequence[str],
    seed: int = 0,
    batch: int = 32,
    rewriting: Captioning | None = None,
    refinement: Refinement | None = None,
) -> Iterator[Tensor]:
    """Prompts -> pictures [n, 3, H, W] in [0, 1], at most `batch` at a time. The noise of a picture depends on seed and
    place in the list alone: other weights, or another batch size, start from the same.

    Args:
        rewriting: how prompts are rewritten before they are drawn; None: they are drawn as they are.
        refinement: of several drawings the best; its verifier judges by the prompts.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    starts = range(0, len(texts), batch)
    for first in watched(starts, len(starts), "batch", "drawing"):
        prompts = list(texts[first : first + batch])
        asked = prompts if rewriting is None else model.rewrite(prompts, 1, _seed(seed, first), rewriting).texts
        noise = functools.partial(_noise, model, [_seed(seed, first + place) for place in range(len(asked))])
        if refinement is None:
            yield model.draw(model.read(asked), noise(0))
        else:
            best, _ = refinement.draw(model, asked, noise, prompts=prompts)
            yield best.pictures


def _seed(seed: int, item: int) -> int:
    return int(np.random.SeedSequence([seed, item]).generate_state(1)[0])


def _noise(model: AutoEncoder, seeds: list[int], number: int) -> Tensor:
    """[N, C, h, w] of the drawing with that number of each item."""
    generators = [torch.Generator().manual_seed(seed_of(seed, number)) for seed in seeds]
    shape = model.decoder.latent_shape
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators]).to(model.device)
