"""Language health of captions: reward must not be bought with gibberish, repetition or a private code."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from uae_lightning.algorithms.token_logprobs import gather_logprobs
from uae_lightning.data.words import ngrams, repetition, words_of
from uae_lightning.evaluation.intervals import Interval
from uae_lightning.evaluation.statistics import Figures, Items, Statistic
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.interfaces import Encoder
from uae_lightning.types import Captions

SIZES = (1, 2)  # of the n-grams whose distinctness is measured


class Language(Suite):
    """A value for each caption of the round trip.

    tokens: their number, end-of-text included.
    words: their number, stops and commas not included.
    repetition: share of the runs of REPEATED words that came before in the same caption.
    nll: mean over the tokens of -log p(token | picture, tokens before), in nats, under the encoder before RL.
    perplexity: the exponential of the mean nll, so that each caption weighs the same, however long it is.
    distinct_1, distinct_2: see `distinct`.
    """

    about = "whether captions are still language"
    lower_is_better = ("repetition", "nll", "perplexity")
    neither = ("tokens", "words")

    def measure(self, subject: Subject) -> Items:
        trip = subject.round_trip
        return language(trip.captions, trip.originals, subject.reference)

    def statistics(self, items: Items) -> dict[str, Statistic]:
        perplexity = {"perplexity": Statistic(("nll",), "exp")} if "nll" in items else {}
        return super().statistics(items) | perplexity

    def figures(self, items: Items) -> Figures:
        return super().figures(items) | {f"distinct_{size}": distinct(items, size) for size in SIZES}

    def groups(self, figures: Figures) -> list[Group]:
        return [
            Group("Caption length", "", (Row("tokens", "tokens"),), None),
            Group("Language", "captions must stay language", (Row("repetition", "repetition"),)),
            Group("Perplexity", "of captions under the encoder before RL", (Row("perplexity", "per token"),), None),
        ]


def language(captions: Captions, images: Tensor, reference: Encoder | None = None, *, batch_size: int = 64) -> Items:
    """The values of `Language`.

    Args:
        captions: N captions, tokens included.
        images: [N, 3, H, W] the pictures they are of.
        reference: the encoder before RL, with the vocabulary of the one that wrote the captions; without one there is
            no nll.
        batch_size: captions scored at a time.
    """
    words = [words_of(text) for text in captions.texts]
    values = {
        "tokens": captions.lengths.float().tolist(),
        "words": [float(len(of_caption)) for of_caption in words],
        "repetition": [repetition(of_caption) for of_caption in words],
    }
    for size in SIZES:
        values |= novelty(words, size)
    return values if reference is None else values | {"nll": _nll(captions, images, reference, batch_size)}


def novelty(words: list[list[str]], size: int) -> Items:
    """What `distinct` is made of, for each caption: n-grams that no other caption has ("only"), its share in all
    distinct ones, split evenly among the captions that hold them ("share"), and all of them ("all")."""
    captions = [Counter(ngrams(of_caption, size)) for of_caption in words]
    holders = Counter(gram for caption in captions for gram in caption)  # n-gram -> captions it is in
    return {
        f"distinct_{size}/only": [float(sum(holders[gram] == 1 for gram in caption)) for caption in captions],
        f"distinct_{size}/share": [sum(1 / holders[gram] for gram in caption) for caption in captions],
        f"distinct_{size}/all": [float(caption.total()) for caption in captions],
    }


def distinct(items: Items, size: int) -> Interval:
    """Distinct n-grams of all captions over their number (Li et al., arXiv 1510.03055); n counts captions.

    It falls as captions grow longer, in a language of a hundred words fast: compare it at equal lengths.

    The interval is the estimate -/+ 1.96 standard errors of the jackknife over captions. The bootstrap fails here: a
    resample holds captions twice, thus fewer distinct n-grams, and its percentiles lie below the estimate.

    Raises:
        ValueError: fewer than 2 captions.
    """
    only, shares, lengths = (np.array(items[f"distinct_{size}/{name}"]) for name in ("only", "share", "all"))
    if len(only) < 2:
        raise ValueError(f"an interval needs at least 2 captions, got {len(only)}: evaluate more pictures")
    found = round(shares.sum())
    share = found / max(lengths.sum(), 1)
    without = (found - only) / np.maximum(lengths.sum() - lengths, 1)  # each caption left out in turn
    error = math.sqrt((len(only) - 1) * float(without.var()))
    low, high = max(share - 1.96 * error, 0.0), min(share + 1.96 * error, 1.0)
    return {"mean": float(share), "low": float(low), "high": float(high), "n": len(only)}


@torch.no_grad()
def _nll(captions: Captions, images: Tensor, reference: Encoder, batch_size: int) -> list[float]:
    means = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        chunk = Captions(captions.texts[rows], captions.tokens[rows], captions.mask[rows])
        logprobs = gather_logprobs(reference.token_logits(images[rows], chunk), chunk.tokens)
        means += (-(logprobs * chunk.mask).sum(1) / chunk.lengths.clamp(min=1)).tolist()
    return means
