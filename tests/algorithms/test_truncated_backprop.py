"""DRaFT-K's gradient: against finite differences, and against the plain loop, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uae_lightning.algorithms.truncated_backprop import unroll

STEPS = 5
LEVELS = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)


def step(weight: Tensor, bend: Tensor, x: Tensor, level: Tensor, after: Tensor) -> Tensor:
    return x + (torch.tanh(x @ weight) + level * bend) * (after - level)


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bend and first state, in double precision."""
    generator = torch.Generator().manual_seed(0)
    weight, bend, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(3, 3), (3,), (4, 3)]
    )
    return weight.requires_grad_(), bend.requires_grad_(), x


def loss(weight: Tensor, bend: Tensor, x: Tensor, last: int) -> Tensor:
    return unroll(lambda *args: step(weight, bend, *args), x, LEVELS, last).square().sum()


@pytest.mark.parametrize("last", [1, 2, STEPS])
def test_the_gradient_is_that_of_finite_differences_of_the_last_steps(given, last: int):
    # red with `steps - last + 1` in either loop, or with an argument of `step` detached
    weight, bend, x = given
    found = torch.autograd.grad(loss(weight, bend, x, last), (weight, bend))
    with torch.no_grad():
        for index in range(STEPS - last):  # with the weights as they are: a constant
            x = step(weight, bend, x, LEVELS[index], LEVELS[index + 1])

        def after(weight: Tensor, bend: Tensor) -> Tensor:
            state = x
            for index in range(STEPS - last, STEPS):
                state = step(weight, bend, state, LEVELS[index], LEVELS[index + 1])
            return state.square().sum()

        for place, (value, gradient) in enumerate(zip((weight, bend), found, strict=True)):
            for index in range(value.numel()):
                move = torch.zeros(value.numel(), dtype=value.dtype)
                move[index] = 1e-5
                moved = [
                    [v + sign * move.view_as(v) if place == number else v for number, v in enumerate((weight, bend))]
                    for sign in (1, -1)
                ]
                difference = (after(*moved[0]) - after(*moved[1])) / 2e-5
                torch.testing.assert_close(gradient.flatten()[index], difference, atol=1e-8, rtol=1e-7)


def test_all_steps_and_checkpoints_change_no_bit(given):
    # red with the final step left out, or `after` given twice
    weight, bend, x = given
    found = torch.autograd.grad(loss(weight, bend, x, STEPS), (weight, bend))
    state = x
    for index in range(STEPS):
        state = step(weight, bend, state, LEVELS[index], LEVELS[index + 1])
    plain = state.square().sum()
    assert torch.equal(plain, loss(weight, bend, x, 2))
    for one, other in zip(found, torch.autograd.grad(plain, (weight, bend)), strict=True):
        assert torch.equal(one, other)


def test_the_inside_of_a_step_is_computed_again_but_for_the_final_one(given):
    # red with `steps` for `steps - 1` in the second range (and the final step left out), or without `checkpoint`
    weight, bend, x = given
    levels: list[float] = []
    state = unroll(lambda *args: levels.append(float(args[1])) or step(weight, bend, *args), x, LEVELS, 3)
    assert levels == LEVELS[:-1].tolist()
    state.sum().backward()
    assert levels[STEPS:] == LEVELS[[3, 2]].tolist()


@pytest.mark.parametrize("last", [0, STEPS + 1])
def test_steps_that_are_not_there_are_refused(given, last: int):
    with pytest.raises(ValueError, match=f"1 to {STEPS} steps, not through {last}"):
        loss(*given, last)
