"""Bits of captions under an adaptive coder."""

import math

import numpy as np
import pytest

from uae_lightning.evaluation.rate import AdaptiveCoder


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
