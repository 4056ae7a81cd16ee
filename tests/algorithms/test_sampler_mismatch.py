"""The weights that make tokens of another sampler those of the policy."""

from __future__ import annotations

import math

import pytest
import torch

from uae_lightning.algorithms.policy_loss import clipped_surrogate
from uae_lightning.algorithms.sampler_mismatch import truncated_importance

MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, math.nan, -math.inf]])


def test_weights_are_ratios_cut_off():
    # red if the ratio is turned round, if it is cut off below as well, or if padding is looked at
    sampler = OLD + torch.tensor([[0.5, -0.5, -2.0], [3.0, 0.0, 0.0]])
    weights, metrics = truncated_importance(OLD, sampler, MASK, limit=2.0)
    expected = [[math.exp(-0.5), math.exp(0.5), 2.0], [math.exp(-3.0), 1.0, 1.0]]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert metrics["sampler_log_ratio_mean"].item() == pytest.approx(6.0 / 4)
    assert metrics["sampler_log_ratio_max"].item() == pytest.approx(3.0)
    assert metrics["sampler_truncated"].item() == pytest.approx(0.25)


def test_the_mean_over_the_sampler_is_that_over_the_policy():
    # red if the ratio is turned round: importance sampling of a distribution by another, without a limit
    policy, sampler = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    worth = torch.tensor([1.0, 5.0, -2.0])
    weights, _ = truncated_importance(policy[None], sampler[None], torch.ones(1, 3, dtype=torch.bool), limit=math.inf)
    assert (sampler.exp() * weights[0] * worth).sum() == pytest.approx((policy.exp() * worth).sum().item())


def test_where_both_agree_the_loss_is_the_same_to_the_bit():
    # red if weights are normalised, or come from exp of anything but 0
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(4, 7, generator=generator)
    logp, mask = old + 0.3 * torch.randn(4, 7, generator=generator), torch.rand(4, 7, generator=generator) > 0.3
    loss, _ = clipped_surrogate(logp, old, torch.tensor([1.5, -0.5, -0.5, 0.7]), mask, clip_low=0.2, clip_high=0.2)
    weights, metrics = truncated_importance(old, old.clone(), mask, limit=1.0)
    assert torch.equal(loss * weights, loss) and not any(metrics.values())


def test_tokens_that_the_sampler_held_for_impossible_have_finite_weights():
    # red without the limit on the log ratio: exp overflows, and inf * 0 is no number
    old, sampler = torch.tensor([[-1.0, -9999.0]]), torch.tensor([[-9999.0, -1.0]])
    weights, metrics = truncated_importance(old, sampler, torch.ones(1, 2, dtype=torch.bool), limit=math.inf)
    assert weights.isfinite().all() and weights[0, 1] > 0 and metrics["sampler_truncated"] == 0
    empty, nothing = truncated_importance(old, sampler, torch.zeros(1, 2, dtype=torch.bool), limit=2.0)
    assert torch.equal(empty, torch.ones(1, 2)) and not any(nothing.values())


def test_what_does_not_belong_together_is_refused():
    # red without the checks
    with pytest.raises(ValueError, match="same shape"):
        truncated_importance(OLD, OLD[:, :2], MASK, limit=2.0)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        truncated_importance(OLD, OLD, MASK, limit=0.5)
