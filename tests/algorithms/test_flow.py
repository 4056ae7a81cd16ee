import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from uae_lightning.algorithms import flow


def latents(seed, batch=3):
    return torch.randn(batch, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_interpolate_runs_from_picture_to_noise():
    # Red if 1 - sigma becomes 1 + sigma, or noise - x0 becomes noise + x0.
    x0, noise = latents(0), latents(1)
    x, velocity = flow.interpolate(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(x[0], x0[0])
    torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * noise[1])
    torch.testing.assert_close(x[2], noise[2])
    torch.testing.assert_close(velocity, noise - x0)


def test_interpolate_is_what_the_diffusers_scheduler_does():
    # Red if sigma and 1 - sigma change places.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    x0, noise = latents(0), latents(1)
    picks = torch.tensor([10, 500, 990])
    expected = scheduler.scale_noise(x0, scheduler.timesteps[picks], noise)
    torch.testing.assert_close(flow.interpolate(x0, noise, scheduler.sigmas[picks])[0], expected)


def test_the_true_velocity_leads_back_in_one_step_and_names_both_ends():
    # Red if a minus in euler_step, or the plus in predict_noise, turns.
    x0, noise, sigma = latents(0), latents(1), torch.tensor([0.2, 0.5, 1.0])
    x, velocity = flow.interpolate(x0, noise, sigma)
    torch.testing.assert_close(flow.euler_step(x, velocity, sigma, 0.0), x0)
    torch.testing.assert_close(flow.predict_noise(x, velocity, sigma), noise)


def test_half_precision_latents_are_computed_with_in_fp32():
    # Red if per_sample says dtype=like.dtype.
    x, velocity = flow.interpolate(latents(0).bfloat16(), latents(1).bfloat16(), 0.3)
    assert x.dtype == torch.float32
    assert flow.euler_step(x.bfloat16(), velocity, 0.3, 0.2).dtype == torch.float32


def test_guidance_starts_at_unconditional_and_passes_conditional():
    # Red if v_cond - v_uncond turns round.
    cond, uncond = latents(0), latents(1)
    torch.testing.assert_close(flow.guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(flow.guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(flow.guide(cond, uncond, 5.0), 5 * cond - 4 * uncond)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_schedule_is_the_one_of_the_sd3_pipeline(steps, shift):
    # Red if one of the two shift_sigma calls goes, or TRAIN_LEVELS 1000 changes a digit.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_inference_steps=steps)
    sigmas = flow.sigma_schedule(steps, shift=shift)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=0, atol=2e-7)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def draw(distribution, count=20_000, **options):
    return flow.sample_sigma(count, distribution=distribution, generator=torch.Generator().manual_seed(0), **options)


def test_sampled_sigmas_follow_their_distribution():
    # Red if shift - 1 becomes shift + 1, mean + std * n becomes mean * std + n, or the distributions are mixed up.
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])

    def cumulative(sigma):
        return (sigma[:, None] <= levels).float().mean(0)

    torch.testing.assert_close(cumulative(draw("uniform")), levels, rtol=0, atol=0.015)
    unshifted = levels / (3 - 2 * levels)  # the inverse of s = 3u / (1 + 2u)
    torch.testing.assert_close(cumulative(draw("shifted_uniform")), unshifted, rtol=0, atol=0.015)
    normal = torch.distributions.Normal(0.5, 0.8)
    sigma = draw("logit_normal", mean=0.5, std=0.8)
    torch.testing.assert_close(cumulative(sigma), normal.cdf(levels.logit()), rtol=0, atol=0.015)


@pytest.mark.parametrize("distribution", ["logit_normal", "mode", "shifted_uniform", "uniform"])
def test_sampled_sigmas_lie_above_zero_and_repeat_with_their_generator(distribution):
    # Red if 1 - rand becomes rand + 1, or the generator is not handed on.
    sigma = draw(distribution)
    assert sigma.shape == (20_000,) and (sigma > 0).all() and (sigma <= 1).all()
    assert torch.equal(sigma, draw(distribution))


@pytest.mark.parametrize(
    ("scheme", "theirs", "ours"),
    [
        ("logit_normal", {"logit_mean": 0.0, "logit_std": 1.0}, {"distribution": "logit_normal", "mean": math.log(3)}),
        ("logit_normal", {"logit_mean": 0.5, "logit_std": 0.7},
         {"distribution": "logit_normal", "mean": math.log(3) - 0.5, "std": 0.7}),
        ("mode", {"mode_scale": 1.29}, {"distribution": "mode"}),
        ("mode", {"mode_scale": -0.7}, {"distribution": "mode", "mode_scale": -0.7}),
        ("sigma_sqrt", {}, {"distribution": "shifted_uniform"}),
        ("cosmap", {}, {"distribution": "shifted_uniform"}),
    ],
)  # fmt: skip
def test_levels_and_weights_of_diffusers_sd3_scripts(scheme, theirs, ours):
    # Red if the mean of "logit_normal" turns its sign, sin becomes cos, "mode" is not shifted, or a weight is another.
    # As in the scripts: a place u in the schedule, which is shifted by 3 and begins with noise; their default adds
    # sigma^2 to the weight, as the error is that of x0.
    generator = torch.Generator().manual_seed(1)
    u = compute_density_for_timestep_sampling(scheme, 40_000, generator=generator, **theirs)
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas[(u * 1000).long()]
    sigma, at = draw(count=40_000, **ours), torch.linspace(0.02, 0.98, 25)
    torch.testing.assert_close(sigma.quantile(at), expected.quantile(at), rtol=0, atol=0.012)
    weighting = scheme if scheme in ("sigma_sqrt", "cosmap") else "none"
    weight = compute_loss_weighting_for_sd3(scheme, sigmas=expected)
    torch.testing.assert_close(flow.velocity_weight(expected, weighting), weight)
    both = flow.velocity_weight(expected, weighting, precondition_outputs=True)
    torch.testing.assert_close(both, weight * expected.square())


def test_the_default_of_diffusers_is_about_noisy_states():
    # Red if log 3 is left out of the YAML's mean: half of the levels lie above .75, not above .5
    assert draw("logit_normal", mean=1.0986).median() == pytest.approx(0.75, abs=0.01)


def test_no_weight_is_infinite():
    # Red if the clamp goes: uniform levels come as close to 0 as floats do
    assert flow.velocity_weight(torch.tensor([1e-20]), "sigma_sqrt").item() == pytest.approx(1e6)


def test_a_shift_of_logit_normal_levels_is_a_mean():
    # Red if shift - 1 becomes shift + 1: the docstring tells users to add log(k) to the mean.
    torch.testing.assert_close(
        flow.shift_sigma(draw("logit_normal"), 3.0), draw("logit_normal", mean=math.log(3.0)), rtol=1e-5, atol=1e-6
    )


def test_bad_arguments_are_named():
    # Red if a check is turned round.
    with pytest.raises(ValueError, match="one per sample"):
        flow.interpolate(latents(0), latents(1), torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="same shape"):
        flow.interpolate(latents(0), latents(1, batch=2), 0.5)
    with pytest.raises(ValueError, match="steps"):
        flow.sigma_schedule(0)
    with pytest.raises(ValueError, match="shift"):
        flow.sigma_schedule(4, shift=0.0)
    with pytest.raises(ValueError, match="distribution"):
        flow.sample_sigma(4, distribution="normal")
    for options in ({"std": 0.0}, {"mean": math.nan}, {"shift": math.nan}, {"mode_scale": 1.8}):
        with pytest.raises(ValueError, match=next(iter(options))):
            flow.sample_sigma(4, **options)
    with pytest.raises(ValueError, match="weighting"):
        flow.velocity_weight(torch.ones(1), "mode")
