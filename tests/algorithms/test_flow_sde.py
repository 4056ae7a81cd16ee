import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from uae_lightning.algorithms.flow import euler_step, sigma_schedule
from uae_lightning.algorithms.flow_sde import sde_kl, sde_step
from uae_lightning.algorithms.velocity_drift import norm_ratio, velocity_distance

KINDS = ["flow_sde", "dance_sde", "cps"]


def latents(seed, batch=3):
    return torch.randn(batch, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def marginals(sigmas, noise_level, kind, data_mean, data_std):
    """Mean and variance of the latents after every step, for data N(data_mean, data_std^2): exact, nothing is sampled.

    Then x_s is Gaussian with variance V = (1-s)^2 data_std^2 + s^2, the perfect decoder's velocity is E[n - x0 | x],
    affine in x, and a step maps N(m, V) to N(k m + b, k^2 V + std^2); k and b are read off two probes, x = 0 and 1.
    """
    mean, variance, path = 0.0, 1.0, []
    x = torch.tensor([[0.0], [1.0]])
    for s, s_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        spread = (1 - s) ** 2 * data_std**2 + s**2
        velocity = (s - (1 - s) * data_std**2) / spread * (x - (1 - s) * data_mean) - data_mean
        step = sde_step(x, velocity, s, s_next, noise_level, kind=kind, generator=seeded())
        b, k = step.mean[0].item(), (step.mean[1] - step.mean[0]).item()
        mean, variance = k * mean + b, k * k * variance + step.std.item() ** 2
        path.append((s_next, mean, variance))
    return path


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde"])
@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.7, 1.0])
def test_an_sde_keeps_the_marginals_of_the_flow(kind, noise_level):
    # Red if sigma_t^2 |dt| / (2 s) loses its 2, if std loses sqrt(dt), or if "- removed" becomes "+ removed".
    # In 1-D, data N(0.8, 0.5^2), 1000 even steps: the data's own mean and std come out, for every noise level.
    path = marginals(torch.linspace(1, 0, 1001), noise_level, kind, data_mean=0.8, data_std=0.5)
    _, mean, variance = path[-1]
    assert mean == pytest.approx(0.8, abs=0.003) and math.sqrt(variance) == pytest.approx(0.5, abs=0.001)
    for s, mean, variance in path[200:]:  # the stand-in at sigma = 1 is not exact: its trace is gone by sigma = 0.8
        assert mean == pytest.approx((1 - s) * 0.8, abs=0.02)
        assert math.sqrt(variance) == pytest.approx(math.hypot((1 - s) * 0.5, s), abs=0.02)


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("noise_level", [0.0, 0.4, 0.8, 1.0])
def test_cps_keeps_the_noise_level_in_any_number_of_steps(noise_level, steps):
    # Red if cos and sin change places, or the 1 - in front of cos becomes 2 -.
    # Data that is one point: the latents must be N((1-s) point, s^2) exactly after every step, few or many.
    path = marginals(sigma_schedule(steps, shift=3.0), noise_level, "cps", data_mean=0.8, data_std=0.0)
    for s, mean, variance in path:
        assert mean == pytest.approx((1 - s) * 0.8, abs=1e-5) and variance == pytest.approx(s * s, abs=1e-5)


def test_flow_sde_does_not_keep_the_noise_level_in_few_steps():
    # Red if "cps" is silently what "flow_sde" runs (== -> != in _coefficients): the reason why CPS exists.
    path = marginals(sigma_schedule(10, shift=3.0), 0.7, "flow_sde", data_mean=0.8, data_std=0.0)
    assert max(variance - s * s for s, _, variance in path) > 0.01


def test_flow_sde_is_the_formula_of_the_paper():
    # Red if any sign, square or factor of mean or std changes: arXiv 2505.05470, written as there.
    x, v, a, t, t_next = latents(0), latents(1), 0.7, 0.6, 0.5
    dt, sigma_t = t_next - t, a * math.sqrt(t / (1 - t))
    step = sde_step(x, v, t, t_next, a, generator=seeded())
    torch.testing.assert_close(step.mean, x + (v + sigma_t**2 / (2 * t) * (x + (1 - t) * v)) * dt)
    assert step.std.item() == pytest.approx(sigma_t * math.sqrt(-dt))


def test_dance_sde_is_the_formula_of_the_paper():
    # Red if sigma_t keeps its square root, or the sign of the score turns: arXiv 2505.07818, written as there, with the
    # score of the noisy latents, -(x - (1 - s) x0^) / s^2, and noise that is the same at all levels.
    x, v, eta, s, s_next = latents(0), latents(1), 0.3, 0.6, 0.5
    score = -(x - (1 - s) * (x - s * v)) / s**2
    step = sde_step(x, v, s, s_next, eta, kind="dance_sde", generator=seeded())
    torch.testing.assert_close(step.mean, x + (v - eta**2 / 2 * score) * (s_next - s))
    for sigma in (1.0, 0.6, 0.1):
        step = sde_step(x, v, sigma, sigma - 0.1, eta, kind="dance_sde", generator=seeded())
        assert step.std.item() == pytest.approx(eta * math.sqrt(0.1), rel=1e-5)


def test_cps_is_the_formula_of_the_paper():
    # Red if sigma_next becomes sigma in _coefficients: arXiv 2509.05952, written as there.
    x, v, a, s, s_next = latents(0), latents(1), 0.8, 0.6, 0.5
    std = s_next * math.sin(a * math.pi / 2)
    step = sde_step(x, v, s, s_next, a, kind="cps", generator=seeded())
    clean, noise = x - s * v, x + (1 - s) * v
    torch.testing.assert_close(step.mean, (1 - s_next) * clean + math.sqrt(s_next**2 - std**2) * noise)
    assert step.std.item() == pytest.approx(std)


def test_at_sigma_one_the_next_sigma_stands_in_the_denominator():
    # Red if sigma == 1 becomes sigma != 1: the std is infinite.
    step = sde_step(latents(0), latents(1), 1.0, 0.9, 0.7, generator=seeded())
    assert step.std.item() == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9)) * math.sqrt(0.1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4])
def test_every_step_of_a_schedule_is_finite(kind, steps):
    # Red if safe_std is std (0 / 0 in the last step of CPS), or below_one becomes sigma (1 - 1 at the first step).
    x, sigmas = latents(0).requires_grad_(), sigma_schedule(steps, shift=3.0)
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        step = sde_step(x, torch.tanh(x), s, s_next, 0.7, kind=kind, generator=seeded())
        (gradient,) = torch.autograd.grad(step.mean_log_prob.sum(), x)
        assert all(part.isfinite().all() for part in (step.prev, step.mean, step.std, step.mean_log_prob, gradient))


def test_log_prob_is_that_of_the_normal_distribution():
    # Red if 2 * pi becomes 3 * pi, std.log() changes sign, or the reduction takes the batch along.
    x, v, prev = latents(0), latents(1), latents(2)
    sigma, sigma_next = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.8, 0.5, 0.0])
    step = sde_step(x, v, sigma, sigma_next, 0.7, prev=prev)
    expected = torch.distributions.Normal(step.mean, step.std.expand_as(x)).log_prob(prev)
    torch.testing.assert_close(step.mean_log_prob, expected.mean(dim=(1, 2, 3)))
    summed = sde_step(x, v, sigma, sigma_next, 0.7, prev=prev, log_prob_reduction="sum")
    torch.testing.assert_close(summed.mean_log_prob, expected.sum(dim=(1, 2, 3)))
    bare = sde_step(x, v, sigma, sigma_next, 0.7, prev=prev, log_prob_form="squared_error")
    torch.testing.assert_close(bare.mean_log_prob, -(prev - step.mean).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_is_sampling_to_the_last_bit(kind, dtype):
    # Red if prev is rounded on its way (prev.detach().float() -> .half()), or sampling returns mean for prev.
    x, v = latents(0).to(dtype), latents(1).to(dtype)
    sampled = sde_step(x, v, 0.6, 0.5, 0.7, kind=kind, generator=seeded())
    replay = sde_step(x, v, 0.6, 0.5, 0.7, kind=kind, prev=sampled.prev)
    assert torch.equal(sampled.prev, replay.prev) and torch.equal(sampled.mean, replay.mean)
    assert torch.equal(sampled.mean_log_prob, replay.mean_log_prob)
    assert sampled.prev.dtype == sampled.mean.dtype == torch.float32
    assert not torch.equal(sampled.prev, sampled.mean)


def test_samples_have_the_mean_and_std_they_claim():
    # Red if std * noise becomes std + noise.
    x = torch.ones(1, 1).expand(200_000, 1)
    step = sde_step(x, -x, 0.6, 0.5, 0.7, generator=seeded())
    z = (step.prev - step.mean) / step.std
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_step_is_diffusers_euler_step(kind):
    # Red if 1 - cos becomes cos (CPS), or sigma_next - sigma turns round in euler_step. Equal to the last bit.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_inference_steps=6)
    x, ours = latents(0), latents(0)
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = latents(10 + i)
        x = scheduler.step(velocity, timestep, x).prev_sample
        step = sde_step(ours, velocity, scheduler.sigmas[i], scheduler.sigmas[i + 1], 0.0, kind=kind)
        ours = step.prev
        assert torch.equal(ours, x) and torch.equal(step.mean, x)
        assert (step.mean_log_prob == 0).all() and (step.std == 0).all()


def test_sigmas_may_be_floats_scalars_or_one_per_sample():
    # Red if reshape(-1, ...) in per_sample becomes reshape(..., -1): the sigmas would run along the width.
    x, v, prev = latents(0), latents(1), latents(2)
    base = sde_step(x, v, 0.6, 0.5, 0.7, prev=prev)
    for sigma, sigma_next in ((torch.tensor(0.6), torch.tensor(0.5)), (torch.full((3,), 0.6), torch.full((3,), 0.5))):
        step = sde_step(x, v, sigma, sigma_next, 0.7, prev=prev)
        assert torch.equal(step.mean, base.mean) and torch.equal(step.mean_log_prob, base.mean_log_prob)
    mixed = sde_step(x, v, torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.8, 0.5, 0.0]), 0.7, prev=prev)
    torch.testing.assert_close(mixed.mean[1], base.mean[1])
    torch.testing.assert_close(mixed.mean_log_prob[1], base.mean_log_prob[1])


def test_a_better_than_average_sample_becomes_more_probable():
    # Red if the error's minus in _log_prob goes, or prev is not detached (prev.detach() -> prev: no gradient at all).
    x, v = latents(0), latents(1).requires_grad_()
    step = sde_step(x, v, 0.6, 0.5, 0.7, generator=seeded())
    (gradient,) = torch.autograd.grad(step.mean_log_prob.sum(), v)
    moved = sde_step(x, v + 10.0 * gradient, 0.6, 0.5, 0.7, prev=step.prev)
    assert (moved.mean_log_prob > step.mean_log_prob).all()
    assert not step.prev.requires_grad


def test_kl_is_that_of_two_normal_distributions():
    # Red if 2 * std^2 loses its 2, or |dt| is multiplied in the wrong case (not include_dt -> include_dt).
    x, sigma, sigma_next = latents(0), torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.8, 0.5, 0.1])
    step = sde_step(x, latents(1), sigma, sigma_next, 0.7, generator=seeded())
    ref = sde_step(x, latents(2), sigma, sigma_next, 0.7, generator=seeded())
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal(step.mean, step.std.expand_as(x)), normal(ref.mean, ref.std.expand_as(x))
    )
    torch.testing.assert_close(sde_kl(step.mean, ref.mean, step.std), exact.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(sde_kl(step.mean, ref.mean, step.std, reduction="sum"), exact.sum(dim=(1, 2, 3)))
    sigma_t = 0.7 * (sigma / (1 - sigma)).sqrt()  # Flow-GRPO's code
    expected = (step.mean - ref.mean).square().mean(dim=(1, 2, 3)) / (2 * sigma_t**2)
    without = sde_kl(step.mean, ref.mean, step.std, include_dt=False, dt=sigma_next - sigma)
    torch.testing.assert_close(without, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kl_of_a_step_is_the_distance_of_velocities_by_a_weight_of_the_step(kind):
    # Red if velocity_distance is no mean, or the velocity of a step is not the one it was given. The mean of a step is
    # linear in the velocity; of "flow_sde" the weight is |dt| (1 + a^2/2)^2 (1 - s) / (2 a^2 s): 0 at pure noise.
    x, v, ref, a, weights = latents(0), latents(1), latents(2), 0.7, []
    for s, s_next in ((1.0, 0.9), (0.6, 0.5), (0.2, 0.1)):
        steps = [sde_step(x, velocity, s, s_next, a, kind=kind, generator=seeded()) for velocity in (v, ref)]
        distance = velocity_distance(steps[0].velocity, steps[1].velocity)
        torch.testing.assert_close(distance, (v - ref).square().mean((1, 2, 3)))
        weight = sde_kl(steps[0].mean, steps[1].mean, steps[0].std) / distance
        torch.testing.assert_close(weight, weight[:1].expand(3))
        weights.append(weight[0].item())
    if kind == "flow_sde":
        expected = [0.1 * (1 + a**2 / 2) ** 2 * (1 - s) / (2 * a**2 * s) for s in (0.6, 0.2)]
        assert weights[1:] == pytest.approx(expected, rel=1e-4) and weights[0] < weights[1] < weights[2]


def test_norm_ratio_is_that_of_each_picture():
    # Red if the ratio is turned round, or the norm is taken over the batch.
    reference = latents(0)
    scale = torch.tensor([1.0, 1.15, 0.5]).view(3, 1, 1, 1)
    torch.testing.assert_close(norm_ratio(scale * reference, reference), torch.tensor([1.0, 1.15, 0.5]))


def test_kl_of_a_step_without_noise_is_zero():
    # Red if std > 0 becomes std >= 0.
    x = latents(0)
    assert (sde_kl(euler_step(x, latents(1), 0.5, 0.4), x, torch.zeros(1, 1, 1, 1)) == 0).all()


def test_bad_arguments_are_named():
    # Red if a check is turned round.
    x, v = latents(0), latents(1)
    with pytest.raises(ValueError, match="descending"):
        sde_step(x, v, 0.5, 0.6, 0.7)
    with pytest.raises(ValueError, match="descending"):
        sde_step(x, v, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.4, 0.5, 0.4]), 0.7)
    with pytest.raises(ValueError, match="noise_level"):
        sde_step(x, v, 0.5, 0.4, -0.1)
    with pytest.raises(ValueError, match="noise_level"):
        sde_step(x, v, 0.5, 0.4, 1.1, kind="cps")
    with pytest.raises(ValueError, match="one shape"):
        sde_step(x, v[:2], 0.5, 0.4, 0.7)
    with pytest.raises(ValueError, match="one shape"):
        sde_step(x, v, 0.5, 0.4, 0.7, prev=x[:2])
    with pytest.raises(ValueError, match="one per sample"):
        sde_step(x, v, torch.tensor([0.5, 0.6]), 0.4, 0.7)
    for choice in ({"kind": "sde"}, {"log_prob_reduction": "max"}, {"log_prob_form": "gaussian"}):
        with pytest.raises(ValueError, match=next(iter(choice))):
            sde_step(x, v, 0.5, 0.4, 0.7, **choice)
    with pytest.raises(ValueError, match="needs dt"):
        sde_kl(x, v, torch.ones(1, 1, 1, 1), include_dt=False)
