import math

import numpy as np
import pytest
import torch

from uae_lightning.algorithms.policy_loss import clipped_surrogate, disjoint_parts, kl_k3, token_weights

LENGTHS = [5, 2, 7, 1]


def make_batch(seed=0):
    """Four captions of different lengths; the policy has moved far enough for the clip to bind now and then."""
    generator = torch.Generator().manual_seed(seed)
    old_logp = -3 * torch.rand(4, 7, generator=generator)
    logp = old_logp + 0.3 * torch.randn(4, 7, generator=generator)
    advantages = torch.tensor([1.5, -0.5, -0.5, 0.7])
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    return logp, old_logp, advantages, mask


def numpy_grpo(logp, old_logp, advantages, lengths, clip_low, clip_high):
    """Equation 3 of DeepSeekMath, loop by loop, without any of our code."""
    total = 0.0
    for i, length in enumerate(lengths):
        caption = 0.0
        for t in range(length):
            r = math.exp(logp[i, t] - old_logp[i, t])
            caption += min(r * advantages[i], float(np.clip(r, 1 - clip_low, 1 + clip_high)) * advantages[i])
        total += caption / length
    return -total / len(lengths)


def test_grpo_loss_equals_an_independent_numpy_version():
    # Red if minimum -> maximum, 1 + clip_high -> 1 - clip_high, or the sign of the log-ratio turns.
    logp, old_logp, advantages, mask = make_batch()
    loss, metrics = clipped_surrogate(logp, old_logp, advantages, mask, clip_low=0.2, clip_high=0.28)
    expected = numpy_grpo(logp.numpy(), old_logp.numpy(), advantages.numpy(), LENGTHS, 0.2, 0.28)
    assert (loss * token_weights(mask, "grpo")).sum().item() == pytest.approx(expected, rel=1e-5)
    assert 0 < metrics["clip_fraction"] < 1


def test_metrics_are_those_of_the_mask():
    # Red if any metric forgets the mask (e.g. & mask -> | mask), or divides by numel.
    logp, old_logp, advantages, mask = make_batch()
    logp[~mask] += 7.0
    _, metrics = clipped_surrogate(logp, old_logp, advantages, mask, clip_low=0.2, clip_high=0.28)
    log_ratio = (logp - old_logp)[mask].double().numpy()
    ratio, signs = np.exp(log_ratio), advantages[:, None].expand_as(mask)[mask].numpy()
    assert metrics["ratio_mean"].item() == pytest.approx(ratio.mean(), rel=1e-5)
    assert metrics["ratio_max"].item() == pytest.approx(ratio.max(), rel=1e-5)
    assert metrics["log_ratio_abs_max"].item() == pytest.approx(np.abs(log_ratio).max(), rel=1e-5)
    assert metrics["approx_kl"].item() == pytest.approx((ratio - 1 - log_ratio).mean(), rel=1e-4)
    binds = ((signs > 0) & (ratio > 1.28)) | ((signs < 0) & (ratio < 0.8))
    assert metrics["clip_fraction"].item() == pytest.approx(binds.mean())
    assert not any(value.requires_grad for value in metrics.values())


def test_on_policy_the_loss_is_minus_the_advantage_and_its_gradient_too():
    # Red if exp becomes expm1, or the minus in front of torch.minimum goes.
    logp, _, advantages, mask = make_batch()
    logp.requires_grad_()
    loss, metrics = clipped_surrogate(logp, logp.detach(), advantages, mask, clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    expected = -advantages[:, None] * mask
    assert torch.equal(loss.detach(), expected) and torch.equal(logp.grad, expected)
    assert metrics["log_ratio_abs_max"] == 0 and metrics["ratio_mean"] == 1 and metrics["ratio_max"] == 1


def test_better_than_average_becomes_more_probable():
    # Red if the minus in front of torch.minimum goes.
    logits = torch.zeros(2, 3, requires_grad=True)
    tokens = torch.tensor([[0], [1]])
    for _ in range(3):
        logp = logits.log_softmax(-1).gather(1, tokens)
        loss, _ = clipped_surrogate(logp, logp.detach(), torch.tensor([1.0, -1.0]), None, clip_low=0.2, clip_high=0.2)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        logits = (logits - gradient).detach().requires_grad_()
    logp = logits.log_softmax(-1).gather(1, tokens).flatten()
    assert logp[0] > math.log(1 / 3) > logp[1]


@pytest.mark.parametrize(
    "advantage, log_ratio, learns", [(1, 0.5, False), (1, -0.5, True), (-1, 0.5, True), (-1, -0.5, False)]
)
def test_the_clip_stops_only_what_went_far_enough_the_right_way(advantage, log_ratio, learns):
    # Red if minimum -> maximum.
    logp = torch.tensor([[log_ratio]], requires_grad=True)
    advantages = torch.tensor([float(advantage)])
    loss, metrics = clipped_surrogate(logp, torch.zeros(1, 1), advantages, None, clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert bool(logp.grad.item() != 0) is learns
    assert metrics["clip_fraction"].item() == float(not learns)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_garbage_in_the_padding_changes_nothing(garbage):
    # Red if the masked_fill of log_ratio moves behind exp (NaN gradient), or one ~mask loses its ~.
    def run(fill):
        logp, old_logp, advantages, mask = make_batch()
        if fill is not None:
            logp[~mask], old_logp[~mask] = fill, -fill
        logp.requires_grad_()
        loss, metrics = clipped_surrogate(logp, old_logp, advantages, mask, clip_low=0.2, clip_high=0.28)
        loss = loss + 0.1 * kl_k3(logp, old_logp - 0.2, mask)
        (loss * token_weights(mask, "grpo")).sum().backward()
        return loss.detach(), logp.grad, metrics, mask

    loss, gradient, metrics, mask = run(garbage)
    clean_loss, clean_gradient, clean_metrics, _ = run(None)
    assert torch.equal(loss, clean_loss) and torch.equal(gradient, clean_gradient) and metrics == clean_metrics
    assert (loss[~mask] == 0).all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("log_ratio", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_runaway_ratio_stays_finite(log_ratio, advantage):
    # Red if LOG_RATIO_LIMIT 20 becomes 200.
    logp = torch.tensor([[log_ratio]], requires_grad=True)
    loss, metrics = clipped_surrogate(
        logp, torch.zeros(1, 1), torch.tensor([advantage]), None, clip_low=0.2, clip_high=0.2
    )
    loss = loss + kl_k3(logp, torch.zeros(1, 1))
    loss.sum().backward()
    assert loss.isfinite().all() and logp.grad.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())


def test_an_empty_mask_gives_zeros_and_an_unchanged_policy():
    # Red if clamp(min=1) becomes clamp(min=0) in the count.
    logp, old_logp, advantages, mask = make_batch()
    loss, metrics = clipped_surrogate(logp, old_logp, advantages, mask & False, clip_low=0.2, clip_high=0.2)
    assert (loss == 0).all()
    assert {name: value.item() for name, value in metrics.items()} == {
        "ratio_mean": 1, "ratio_max": 1, "clip_fraction": 0, "approx_kl": 0, "log_ratio_abs_max": 0,
    }  # fmt: skip


def test_k3_is_never_negative_and_zero_only_at_equality():
    # Red if expm1(x) - x becomes expm1(x) + x.
    log_ratio = torch.linspace(-3, 3, 601)
    logp = -torch.ones(601)
    kl = kl_k3(logp, logp + log_ratio)
    torch.testing.assert_close(kl, log_ratio.exp() - log_ratio - 1, atol=1e-6, rtol=1e-5)
    assert (kl >= 0).all() and (kl_k3(logp, logp) == 0).all()


def test_k3_in_expectation_is_the_kl_of_policy_to_reference():
    # Red if the two sides of the subtraction in kl_k3 change places: that is another estimator of another KL.
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    expected = (p * kl_k3(p.log(), q.log())).sum()
    exact = torch.distributions.kl_divergence(torch.distributions.Categorical(p), torch.distributions.Categorical(q))
    torch.testing.assert_close(expected, exact)


def test_k3_pulls_the_policy_back():
    # Red if the log-ratio of kl_k3 is taken the other way without changing its sign in the gradient.
    logp = torch.tensor([-1.0, -3.0], requires_grad=True)
    kl_k3(logp, torch.tensor([-2.0, -2.0])).sum().backward()
    assert logp.grad[0] > 0 > logp.grad[1]


def test_token_weights_closed_forms():
    # Red if dim=1 becomes dim=0, or `/ sequences` goes.
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(token_weights(mask, "grpo"), torch.tensor([[0.25, 0.25, 0], [0.5, 0, 0]]))
    dr_grpo = token_weights(mask, "dr_grpo", max_length=10)
    torch.testing.assert_close(dr_grpo, torch.tensor([[0.05, 0.05, 0], [0.05, 0, 0]]))
    torch.testing.assert_close(token_weights(mask, "dapo"), torch.tensor([[1, 1, 0], [1, 0, 0]]) / 3)


@pytest.mark.parametrize("normalization", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_whole_batch(normalization):
    # Red if total_sequences or total_tokens is ignored (is None -> is not None).
    _, _, _, mask = make_batch()
    mask = torch.cat([mask, torch.zeros(1, 7, dtype=torch.bool)])  # a caption without tokens
    totals = {"max_length": 7, "total_sequences": len(mask), "total_tokens": int(mask.sum())}
    whole = token_weights(mask, normalization, max_length=7)
    for size in (1, 2, 3):
        parts = [token_weights(part, normalization, **totals) for part in mask.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=0)


def test_bad_arguments_are_named():
    # Red if a check is turned round.
    logp, old_logp, advantages, mask = make_batch()
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    with pytest.raises(ValueError, match="same shape"):
        clipped_surrogate(logp, old_logp[:, :3], advantages, mask, **clip)
    with pytest.raises(ValueError, match="advantages"):
        clipped_surrogate(logp, old_logp, advantages[:2], mask, **clip)
    with pytest.raises(ValueError, match="mask"):
        clipped_surrogate(logp, old_logp, advantages, mask.float(), **clip)
    with pytest.raises(ValueError, match="clip_low"):
        clipped_surrogate(logp, old_logp, advantages, mask, clip_low=-0.2, clip_high=0.2)
    with pytest.raises(ValueError, match="max_length"):
        token_weights(mask, "dr_grpo")
    with pytest.raises(ValueError, match="normalization"):
        token_weights(mask, "mean")


def test_parts_of_a_rollout_are_disjoint_equal_and_drawn():
    # Red if `part::parts` becomes `part:`, or the seed is not used; one part keeps its order, so nothing changes there
    parts = disjoint_parts(12, 3, seed=0)
    assert sorted(sum(parts, [])) == list(range(12)) and [len(part) for part in parts] == [4, 4, 4]
    assert parts == disjoint_parts(12, 3, seed=0) != disjoint_parts(12, 3, seed=1)
    assert disjoint_parts(4, 1, seed=5) == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="divide"):
        disjoint_parts(5, 2, seed=0)
