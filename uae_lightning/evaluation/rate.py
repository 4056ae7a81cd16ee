"""How many bits cross from encoder to decoder: the rate of a picture, whatever the language.

V symbols of the language, end-of-text included
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import torch

from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.ranges import Natural, checked
from uae_lightning.types import Captions

Context = tuple[int, ...]


@checked
class Rate(Suite):
    """Of each caption of the round trip, in bits.

    raw: its tokens times log2 V; of codes of several levels, log2 of those of the token's level.
    coded: what an adaptive arithmetic coder takes for it that knows the captions of `learnt_from` other pictures and no
    picture: the rate that a decoder can be reached at. (The likelihood under the encoder is no rate: it is given the
    picture.)

    Args:
        learnt_from: held-out pictures behind those of the round trip, whose captions the coder has seen.
    """

    about = "bits from encoder to decoder for a picture"
    neither = ("raw", "coded")

    def __init__(self, learnt_from: Natural = 256) -> None:
        super().__init__()
        self.learnt_from = learnt_from

    def measure(self, subject: Subject) -> Items:
        captions = subject.round_trip.captions
        first = Captions(captions.texts[:1], captions.tokens[:1], captions.mask[:1])
        symbols = subject.model.reader.token_logits(subject.round_trip.originals[:1], first).shape[-1]
        words = subject.model.reader.words
        coder = AdaptiveCoder(symbols)
        for said in self.others(subject):
            for caption in rows_of(said):
                coder.bits(caption, words(symbols, len(caption)))
        written = [(caption, words(symbols, len(caption))) for caption in rows_of(captions)]
        raw = [sum(math.log2(len(one)) for one in allowed) for _, allowed in written]
        return {"raw": raw, "coded": [coder.bits(*each) for each in written]}

    def others(self, subject: Subject) -> Iterator[Captions]:
        """Captions of as many of the pictures behind the round trip's as there are."""
        passed, left = 0, self.learnt_from
        for number, batch in enumerate(subject.data.val_dataloader()):
            images = batch.images[max(0, subject.samples - passed) :][:left]
            passed, left = passed + len(batch.images), left - len(images)
            if len(images):
                yield subject.model.write(images.to(subject.model.device), 1, subject.seed_of(number))
            if not left:
                return

    def groups(self, figures: Figures) -> list[Group]:
        return [Group("Rate", "bits for a picture", (Row("raw", "raw"), Row("coded", "coded")), None)]


def rows_of(captions: Captions) -> Iterator[list[int]]:
    for tokens, mask in zip(captions.tokens.cpu(), captions.mask.cpu(), strict=True):
        yield torch.masked_select(tokens, mask).tolist()


class AdaptiveCoder:
    """Bits of sequences under a mixture of contexts of growing length: none, the place, the symbol before, the two
    before. Each falls back on the one before it as often as it met something new (Witten-Bell; PPM's method C, Moffat,
    IEEE Trans. Commun. 38(11), 1990). It learns from what it codes.

    Args:
        symbols: V.
    """

    def __init__(self, symbols: int) -> None:
        self.symbols = symbols
        self.seen: dict[tuple[int, Context], Counter[int]] = defaultdict(Counter)

    def bits(self, sequence: Sequence[int], allowed: Sequence[range] | None = None) -> float:
        """Of a sequence, which it then knows; each symbol is known to be one of `allowed`, None: of all."""
        total = 0.0
        for place, symbol in enumerate(sequence):
            words = allowed[place] if allowed else range(self.symbols)
            counts = [self.seen[key] for key in enumerate(contexts(sequence, place, words))]
            chance = 1 / len(words)
            for count in counts:
                new = len(count)
                chance = (count[symbol] + new * chance) / (count.total() + new) if new else chance
            total -= math.log2(chance)
            for count in counts:
                count[symbol] += 1
        return total


def contexts(sequence: Sequence[int], place: int, words: range) -> tuple[Context, ...]:
    """Those of other words are kept apart, where the place does not say so."""
    before = [-1, -1, *sequence[:place]][-2:]  # -1: the sequence begins
    return (words.start,), (place,), (before[1], words.start), (*before, words.start)
