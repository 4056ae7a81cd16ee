"""The size of a Jacobian by random directions: against the Jacobian itself, and against leaving states out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uae_lightning.algorithms.sensitivity import sensitivity

LENGTH, CHANNELS, VALUES = 6, 5, 40


@pytest.fixture
def states() -> Tensor:
    return torch.randn(1, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def parts() -> Tensor:
    """What each state brings into the picture, [L, D, P]: the later the more, but for the third, which is not seen."""
    parts = torch.randn(LENGTH, CHANNELS, VALUES, generator=torch.Generator().manual_seed(2))
    return parts * torch.tensor([0.2, 0.5, 0.0, 1.0, 2.0, 4.0])[:, None, None]


def found(draw, states: Tensor, directions: int = 4) -> Tensor:
    return sensitivity(draw, states, directions, torch.Generator().manual_seed(3))


def test_it_is_the_size_of_the_jacobian(states, parts):
    # red with a mean over channels, without the root, or with one direction for all
    def draw(given: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("nld,ldp->np", given, parts) / 9).view(2, -1)

    jacobian = torch.autograd.functional.jacobian(lambda given: draw(given).flatten(), states)  # [P, 1, L, D]
    torch.testing.assert_close(found(draw, states, 2000), jacobian.square().sum((0, 1, 3)).sqrt(), rtol=0.04, atol=0)


def test_what_is_not_seen_has_none(states):
    # red with `+ eps` under the root, or a norm over all states together
    seen = torch.tensor([True, True, False, True, False, True])

    def attend(given: Tensor) -> Tensor:
        scores = given.sum(-1).masked_fill(~seen, float("-inf"))
        return scores.softmax(-1) @ given.sin()

    heard = found(attend, states)
    assert (heard[~seen] == 0).all() and (heard[seen] > 0).all()


def test_it_ranks_as_leaving_out_does_where_that_is_all_a_state_does(states, parts):
    # red with `1 / ` the size, or the sizes of the states themselves
    def draw(given: Tensor) -> Tensor:
        return torch.einsum("nld,ldp->p", given, parts)

    states = states / states.norm(dim=-1, keepdim=True)  # otherwise a state that is large counts for more left out
    change = []
    for place in range(LENGTH):
        without = states.clone()
        without[:, place] = 0
        change.append((draw(states) - draw(without)).norm())
    assert found(draw, states, 16).argsort().tolist() == torch.stack(change).argsort().tolist()


def test_nothing_else_is_touched(states, parts):
    # red without `detach`, or with `backward` in place of `grad`
    weight = parts.clone().requires_grad_()
    with torch.no_grad():
        heard = found(lambda given: torch.einsum("nld,ldp->p", given, weight), states)
    assert weight.grad is None and not states.requires_grad and not heard.requires_grad
