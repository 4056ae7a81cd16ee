import pytest
import torch

from uae_lightning.algorithms.advantages import group_advantages, zero_variance_share


@pytest.mark.parametrize(
    "scale, winner",
    [("group_std", 1.5), ("batch_std", 0.75 / (3 / 16) ** 0.5), ("none", 0.75)],
)
def test_lone_winner_in_a_group_of_four(scale, winner):
    # Red if the std of "group_std" becomes biased (1.73), or that of "batch_std" unbiased: correction=0 -> 1.
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, scale=scale, eps=0.0)
    torch.testing.assert_close(advantages, torch.tensor([winner] + [-winner / 3] * 3))


def test_groups_are_compared_within_themselves():
    # Red if view(-1, group_size) becomes view(group_size, -1): with 3 groups of 2 the neighbours would be mixed.
    rewards = torch.tensor([0.0, 1.0, 10.0, 30.0, -5.0, -5.5])
    root = 0.5**0.5
    expected = torch.tensor([-root, root, -root, root, root, -root])
    torch.testing.assert_close(group_advantages(rewards, 2, eps=0.0), expected)


def test_batch_std_divides_every_group_by_the_same_number():
    # Red if groups.std(correction=0) gets dim=1: the quiet group would be blown up to the size of the loud one.
    rewards = torch.tensor([0.0, 1.0, 10.0, 30.0])
    expected = torch.tensor([-0.5, 0.5, -10.0, 10.0]) / rewards.std(correction=0)
    torch.testing.assert_close(group_advantages(rewards, 2, scale="batch_std", eps=0.0), expected)


def test_eps_is_added_to_the_std():
    # Red if + eps becomes - eps.
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, eps=0.25)
    assert advantages[0].item() == pytest.approx(0.75 / 0.75)


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    # Red if the masked_fill goes, or its 0.0 becomes 1.0: the fp32 mean of six times 0.9 is not 0.9.
    equal = torch.full((6,), 0.9)
    assert (equal != equal.mean()).all()
    advantages = group_advantages(torch.cat([equal, torch.arange(6.0)]), 6, scale=scale)
    assert (advantages[:6] == 0).all() and (advantages[6:] != 0).all()


def test_zero_variance_share():
    # Red if == becomes >= or != in _all_equal.
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.5, 0.9, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    assert zero_variance_share(rewards, 3).item() == 0.75


@pytest.mark.parametrize("size", [1, 0, 4])
def test_group_size_that_cannot_be_is_named(size):
    # Red if "< 2" becomes "< 1", or the test of the remainder is turned round.
    with pytest.raises(ValueError, match="group_size"):
        group_advantages(torch.arange(6.0), size)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused(bad):
    # Red if the ~ in the search for the culprits goes: the message would name the good samples.
    with pytest.raises(ValueError, match=r"samples \[2\] of 4"):
        group_advantages(torch.tensor([0.0, 1.0, bad, 0.5]), 2)


def test_unknown_scale_is_refused():
    # Red if the last else falls through.
    with pytest.raises(ValueError, match="scale"):
        group_advantages(torch.arange(4.0), 2, scale="std")
