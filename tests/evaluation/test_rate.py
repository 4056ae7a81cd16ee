"""Bits of captions under an adaptive coder."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uae_lightning.evaluation.rate import AdaptiveCoder, Rate
from uae_lightning.types import Captions


def test_a_first_symbol_costs_what_an_unknown_one_does():
    # red if a symbol is counted before it is coded
    coder = AdaptiveCoder(8)
    assert coder.bits([3]) == pytest.approx(3)
    assert coder.bits([3]) < 1


def test_random_symbols_cost_their_entropy_and_chances_sum_to_one():
    # red with another denominator, or a base that is not the context before
    rng = np.random.default_rng(0)
    coder = AdaptiveCoder(16)
    costs = [coder.bits(rng.integers(0, 16, 5).tolist()) for _ in range(3000)]
    assert 20 < np.mean(costs[-1000:]) < 21.5  # 5 symbols of 4 bits; what it learns of noise costs a little
    again = AdaptiveCoder(4)
    for sequence in ([0, 1, 2], [1, 1], [2, 0, 3, 1]):
        again.bits(sequence)
    before = {key: count.copy() for key, count in again.seen.items()}
    chances = []
    for symbol in range(4):
        again.seen.clear()
        again.seen.update({key: count.copy() for key, count in before.items()})
        chances.append(2 ** -again.bits([1, symbol]) / 2 ** -cost_of_first(before))
    assert sum(chances) == pytest.approx(1)


def cost_of_first(seen) -> float:
    coder = AdaptiveCoder(4)
    coder.seen.update({key: count.copy() for key, count in seen.items()})
    return coder.bits([1])


def test_a_grammar_is_learnt():
    # red if contexts are not looked at: what follows is certain
    rng, coder = np.random.default_rng(1), AdaptiveCoder(100)
    costs = [coder.bits([first, first + 10, first + 20]) for first in rng.integers(0, 8, 400).tolist()]
    assert np.mean(costs[-100:]) < 3.6 and costs[0] > 2 * math.log2(100)


def test_places_count():
    # red without the context of the place: codes of cells that differ cost more
    rng, coder = np.random.default_rng(2), AdaptiveCoder(64)
    costs = [coder.bits([8 * place + int(rng.integers(2)) for place in range(8)]) for _ in range(300)]
    assert np.mean(costs[-100:]) < 9.5


def test_levels_of_codes_cost_what_a_code_of_their_own_costs():
    # red if a symbol is taken for one of all levels: 4 bits and 2 would be log2 20 each, and coded ones follow
    rng, levels = np.random.default_rng(3), [range(16), range(16, 20)] * 3
    coder = AdaptiveCoder(20)
    assert AdaptiveCoder(20).bits([3, 16], levels) == pytest.approx(6)
    costs = [coder.bits([int(rng.choice(level)) for level in levels], levels) for _ in range(2000)]
    assert 18 < np.mean(costs[-500:]) < 19.5


class TwoLevels:
    """What `Rate` asks of an encoder."""

    def token_logits(self, images, captions):
        return torch.zeros(1, 6, 20)

    def words(self, symbols, tokens):
        return [range(16), range(16, 20)] * 3


def test_raw_bits_are_of_the_level(monkeypatch):
    # red if Rate counts log2 of all words
    tokens = torch.tensor([[3, 16, 5, 17, 9, 18]])
    captions = Captions([""], tokens, torch.ones_like(tokens, dtype=torch.bool))
    subject = SimpleNamespace(
        model=SimpleNamespace(reader=TwoLevels()),
        round_trip=SimpleNamespace(captions=captions, originals=torch.zeros(1, 3, 4, 4)),
    )
    monkeypatch.setattr(Rate, "others", lambda self, subject: iter(()))
    assert Rate().measure(subject)["raw"] == [18.0]
