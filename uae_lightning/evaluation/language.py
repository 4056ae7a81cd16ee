"""Language health of captions: reward must not be bought with gibberish, repetition or a private code."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from uae_lightning.algorithms.token_logprobs import gather_logprobs
from uae_lightning.data.words import words_of
from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.interfaces import Encoder
from uae_lightning.scenes.captions import COUNTS, PLURALS, RELATIONS, parse_caption
from uae_lightning.scenes.scene import BACKGROUNDS, COLORS, POSITIONS, SIZES
from uae_lightning.types import Captions

REPEATED = 4  # words in a row that count as a repetition where they come again


def language(
    captions: Captions, images: Tensor, reference: Encoder | None = None, *, batch_size: int = 64
) -> dict[str, list[float]]:
    """Name -> a value for each of N captions.

    tokens: their number, end-of-text included.
    words: their number, stops and commas not included.
    grammatical: share of the clauses that are of a form in which `data.captions` writes.
    parses: 1 where each clause is of such a form, or the parser recognises something in it. The parser reads bags of
        words: this allows new forms, but lets scrambled words pass that `grammatical` does not.
    repetition: share of the runs of REPEATED words that came before in the same caption.
    nll: mean over the tokens of -log p(token | picture, tokens before), in nats, under `reference`; left out without.

    Args:
        captions: N captions, tokens included.
        images: [N, 3, H, W] the pictures they are of.
        reference: the encoder before RL, with the vocabulary of the one that wrote the captions.
        batch_size: captions scored at a time.
    """
    texts = captions.texts
    values = {
        "tokens": captions.lengths.float().tolist(),
        "words": [float(len(words_of(text))) for text in texts],
        "parses": [float(_parses(text)) for text in texts],
        "grammatical": [_grammatical(text) for text in texts],
        "repetition": [repetition(words_of(text)) for text in texts],
    }
    return values if reference is None else values | {"nll": _nll(captions, images, reference, batch_size)}


def summarise_language(values: dict[str, list[float]], texts: list[str]) -> dict[str, dict[str, float | int]]:
    """The interval of each figure; perplexity, the exponential of the interval of nll (so each caption weighs the same,
    however long it is); distinct_1 and distinct_2, see `distinct`."""
    intervals = {name: mean_interval(x) for name, x in values.items()}
    if "nll" in intervals:
        nll = intervals["nll"]
        intervals["perplexity"] = {k: math.exp(nll[k]) for k in ("mean", "low", "high")} | {"n": nll["n"]}
    return intervals | {f"distinct_{size}": distinct(texts, size) for size in (1, 2)}


def distinct(texts: list[str], size: int) -> dict[str, float | int]:
    """Distinct n-grams of all captions over their number (Li et al., arXiv 1510.03055); n counts captions.

    It falls as captions grow longer, in a language of a hundred words fast: compare it at equal lengths.

    The interval is the estimate -/+ 1.96 standard errors of the jackknife over captions. The bootstrap fails here: a
    resample holds captions twice, thus fewer distinct n-grams, and its percentiles lie below the estimate.

    Raises:
        ValueError: fewer than 2 captions.
    """
    if len(texts) < 2:
        raise ValueError(f"an interval needs at least 2 captions, got {len(texts)}: evaluate more pictures")
    grams = [Counter(_grams(words_of(text), size)) for text in texts]
    holders = Counter(gram for caption in grams for gram in caption)  # n-gram -> captions it is in
    own = np.array([sum(holders[gram] == 1 for gram in caption) for caption in grams])
    lengths = np.array([caption.total() for caption in grams])
    share = len(holders) / max(int(lengths.sum()), 1)
    without = (len(holders) - own) / np.maximum(lengths.sum() - lengths, 1)  # each caption left out in turn
    error = math.sqrt((len(texts) - 1) * float(without.var()))
    low, high = max(share - 1.96 * error, 0.0), min(share + 1.96 * error, 1.0)
    return {"mean": share, "low": low, "high": high, "n": len(texts)}


@torch.no_grad()
def _nll(captions: Captions, images: Tensor, reference: Encoder, batch_size: int) -> list[float]:
    means = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        chunk = Captions(captions.texts[rows], captions.tokens[rows], captions.mask[rows])
        logprobs = gather_logprobs(reference.token_logits(images[rows], chunk), chunk.tokens)
        means += (-(logprobs * chunk.mask).sum(1) / chunk.lengths.clamp(min=1)).tolist()
    return means


def _clauses(text: str) -> list[str]:
    return [" ".join(clause.split()) for clause in re.split(r"[.,]", text.lower()) if clause.strip()]


def _grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def repetition(words: list[str]) -> float:
    """Share of the runs of REPEATED words that came before."""
    runs = _grams(words, REPEATED)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _parses(text: str) -> bool:
    clauses = _clauses(text)
    return bool(clauses) and all(_FORMS.fullmatch(clause) or not parse_caption(clause).unread for clause in clauses)


def _grammatical(text: str) -> float:
    clauses = _clauses(text)
    return sum(_FORMS.fullmatch(clause) is not None for clause in clauses) / max(len(clauses), 1)


def _one_of(*phrases: str) -> str:
    return f"(?:{'|'.join(phrases)})"


def _forms() -> re.Pattern[str]:
    """Every clause that `data.captions.write_caption` can write; number and verb need not agree."""
    ground, count, color = _one_of(*BACKGROUNDS), _one_of(*COUNTS), _one_of(*COLORS)
    name, position = _one_of(*PLURALS, *PLURALS.values()), _one_of(*POSITIONS)
    look = f"(?:{_one_of(*SIZES)} )?(?:{color} )?{name}"
    noun, number = f"{_one_of('a', *COUNTS)} {look}", f"{count} objects?"
    places = f"the {position}(?: and the {position})*"
    forms = (
        ground,
        f"{look}(?: {position})?",
        f"the background is {ground}",
        f"all of it is set on {ground}",
        f"a picture of {_one_of(number, 'a scene')}(?: on {ground})?",
        f"there {_one_of('is', 'are')} {_one_of(number, noun)}",
        f"this scene shows {number}",
        f"(?:at {places} there {_one_of('is', 'are')}|we see) {noun}",
        f"(?:we see )?{noun}(?: {_one_of('is', 'are')})? at {places}",
        f"the {color} {name} is {_one_of(*RELATIONS)} the {color} {name}",
    )
    return re.compile(_one_of(*forms))


_FORMS = _forms()
