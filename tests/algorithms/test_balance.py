"""Several rewards, several losses: closed forms of what each weighs."""

import pytest
import torch

from uae_lightning.algorithms.advantages import group_advantages
from uae_lightning.algorithms.balance import decoupled_advantages, inverse_final_loss, inverse_gradient


def rewards() -> dict[str, torch.Tensor]:
    """Of 3 groups of 4: a cosine that spreads little, and a rare penalty."""
    generator = torch.Generator().manual_seed(0)
    cosine = 0.9 + 0.01 * torch.randn(12, generator=generator)
    return {"cosine": cosine, "penalty": -torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0])}


BOTH = {"cosine": 1.0, "penalty": 1.0}


@pytest.mark.parametrize("name", list(BOTH))
def test_neither_scale_nor_offset_of_a_reward_counts(name):
    # red if the sum is normalised instead of its parts, or eps is added to the deviation itself
    parts = rewards()
    wanted = decoupled_advantages(parts, BOTH, 4)
    for scale, offset in ((100.0, 0.0), (0.01, 0.0), (1.0, -5.0)):
        changed = parts | {name: scale * parts[name] + offset}
        torch.testing.assert_close(decoupled_advantages(changed, BOTH, 4), wanted, atol=2e-4, rtol=1e-4)
    changed = parts | {name: 128 * parts[name]}  # a power of two moves no bit
    assert torch.equal(decoupled_advantages(changed, BOTH, 4), wanted)
    assert not torch.allclose(decoupled_advantages(parts, BOTH | {name: 3.0}, 4), wanted, atol=0.1)


def test_it_is_the_formula_of_gdpo():
    # red if either normalisation is left out, or a weight
    parts, weights = rewards(), {"cosine": 0.25, "penalty": 2.0}
    each = {}
    for name, values in parts.items():
        groups = values.view(3, 4)
        deviation = groups.std(1, keepdim=True)
        each[name] = torch.where(deviation > 0, (groups - groups.mean(1, keepdim=True)) / deviation, 0.0).flatten()
    summed = 0.25 * each["cosine"] + 2.0 * each["penalty"]
    wanted = (summed - summed.mean()) / summed.std()
    torch.testing.assert_close(decoupled_advantages(parts, weights, 4, eps=0.0), wanted, atol=1e-4, rtol=1e-4)


def test_equal_values_in_a_group_add_exactly_nothing():
    # red if the mask of equal groups goes: the mean of 0.1 is not 0.1, and noise over eps would be a signal
    parts = rewards() | {"same": torch.tensor([0.1] * 4 + [0.7] * 4 + [0.3, 0.2, 0.1, 0.4])}
    alone = decoupled_advantages({"same": parts["same"]}, {"same": 1.0}, 4)
    assert (alone[:8] == 0).all() and (alone[8:] != 0).all()
    constant = parts | {"constant": torch.full((12,), 0.1)}
    with_it = decoupled_advantages(constant, {name: 1.0 for name in constant}, 4)
    assert torch.equal(with_it, decoupled_advantages(parts, {name: 1.0 for name in parts}, 4))
    nothing = decoupled_advantages({"constant": constant["constant"]}, {"constant": 1.0}, 4)
    assert torch.equal(nothing, torch.zeros(12))


def test_a_spread_that_is_rounding_is_no_signal():
    # red if eps of a part is 0
    values = torch.cat([torch.tensor([0.9, 0.9 + 6e-8, 0.9, 0.9]), torch.linspace(0.5, 0.9, 4)])
    assert decoupled_advantages({"a": values}, {"a": 1.0}, 4)[:4].abs().max() < 0.05


def test_one_part_is_grpo_of_one_size():
    # red if weights are not taken out by the batch
    values = rewards()["cosine"]
    found = decoupled_advantages({"a": values}, {"a": 7.0}, 4, eps=0.0)
    usual = group_advantages(values, 4, eps=0.0)
    torch.testing.assert_close(found, usual / usual.std())
    assert found.std().item() == pytest.approx(1.0) and found.view(3, 4).sum(1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("parts", "weights", "words"),
    [
        ({}, {}, "at least one"),
        ({"a": torch.ones(4)}, {"b": 1.0}, r"same names.*\['a'\] and \['b'\]"),
        ({"a": torch.ones(4)}, {"a": float("nan")}, "that of 'a' is nan"),
        ({"a": torch.tensor([1.0, torch.inf, 0.0, 0.0])}, {"a": 1.0}, "finite"),
        ({"a": torch.ones(3)}, {"a": 1.0}, "does not divide"),
    ],
)
def test_what_cannot_be_balanced(parts, weights, words):
    # red without either check
    with pytest.raises(ValueError, match=words):
        decoupled_advantages(parts, weights, 2)


@pytest.mark.parametrize("inverse", [inverse_final_loss, inverse_gradient])
def test_losses_weigh_the_inverse_of_what_they_come_to(inverse):
    # red if the weights are proportional, or add up to 1
    weights = inverse({"flow": 0.375, "replay": 0.05, "more": 0.5})
    assert weights["flow"] * 0.375 == pytest.approx(weights["replay"] * 0.05) == pytest.approx(weights["more"] * 0.5)
    assert sum(weights.values()) == pytest.approx(3)
    for bad in ({}, {"a": 0.0}, {"a": float("nan"), "b": 1.0}, {"a": float("inf")}):
        with pytest.raises(ValueError, match="must be positive numbers"):
            inverse(bad)
