"""Named variants of the decoder's stages: noise levels and weights, windows, guidance, the ratios of GRPO-Guard."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.own_stage import without_trainer
from uae_lightning.algorithms import flow
from uae_lightning.algorithms.flow_sde import sde_step
from uae_lightning.data.scenes_data import ScenesData
from uae_lightning.models.adapters import LoRA
from uae_lightning.stages.common import Captioning, Sampling
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL, ImageRollout
from uae_lightning.types import Conditioning


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(**options) -> DecoderRL:
        defaults = {"group_size": 4, "micro_batch": 8, "window": (0, 2), "kl_beta": 0.0, "sampling": Sampling(4)}
        decoder = make_decoder(train="lora", lora=LoRA(rank=4, alpha=8))
        defaults |= {"captioning": Captioning(1.0, 10), "same_noise": True, "clip": 1.0}
        stage = DecoderRL(make_encoder(), make_projector(), decoder, **(defaults | options))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # a LoRA that starts at zero has no gradient of its first factor
            for parameter in stage.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return stage

    return make


@pytest.fixture
def batch():
    return next(iter(ScenesData(batch_size=2).train_dataloader()))


def gradients(stage, rollout, columns):
    """Of the mean surrogate of the trained steps `columns`, on policy."""
    stage.zero_grad()
    rows, advantages = torch.arange(8), torch.linspace(-1, 1, 8)
    losses = [stage.step_loss(rollout, rows, column, advantages, on_policy=True)[0] for column in columns]
    torch.stack(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in stage.parameters() if p.requires_grad])


def test_the_window_slides_with_the_batches_of_the_run(make_stage, batch):
    # red if `first_window` becomes `window`, or `- 1` goes: the number of the first batch is 1 while it is trained on
    stage, places = make_stage(window=(0, 1), slide_every=2), []
    for number in range(1, 7):
        stage.batches_seen.fill_(number)
        before = stage.rollout(batch).trajectory.before.unflatten(1, (2, 4))
        places.append(stage.window)
        assert torch.equal(before[0, :, 0], before[0, :, 3])  # nothing before the window is stochastic
    assert places == [(0, 1)] * 2 + [(1, 2)] * 2 + [(2, 3)] * 2


def test_ratio_norm_weighs_each_step_by_its_noise_over_its_length(make_stage, batch):
    # red if `/ dt` goes, or if the loss is multiplied by it: on policy, RatioNorm turns the gradient of a step with
    # deviation std and length dt into std / dt times itself
    stage = make_stage()
    rollout, sigmas = stage.rollout(batch), stage.decoder.schedule(4)
    for column in range(2):
        std = stage.replay(rollout, torch.arange(8), column, None).std.item()
        found = []
        for stage.ratio_norm in (False, True):
            found.append(gradients(stage, rollout, [column]))
        factor = std / (sigmas[column] - sigmas[column + 1]).item()
        torch.testing.assert_close(found[1], factor * found[0], atol=1e-6, rtol=1e-3)


def test_ratio_norm_is_exactly_one_on_policy_and_not_after(make_stage, batch):
    # red if `path.mean` is that of another step: the old mean must be the one the sample was drawn around
    stage = make_stage(ratio_norm=True)
    rollout, rows = stage.rollout(batch), torch.arange(8)
    _, metrics = stage.step_loss(rollout, rows, 1, torch.ones(8), on_policy=True)
    assert metrics["log_ratio_abs_max"] == 0
    with torch.no_grad():
        for parameter in stage.parameters():
            if parameter.requires_grad:
                parameter *= 1.2
    _, metrics = stage.step_loss(rollout, rows, 1, torch.ones(8), on_policy=False)
    assert 0 < metrics["log_ratio_abs_max"] < 1


@pytest.mark.parametrize("same_noise", [False, True])
def test_the_guidance_branch_is_computed_once_until_the_policy_moves(make_stage, batch, same_noise):
    # red if `unguided` is that of another step or not taken `[::copies]`; if `on_policy` is always True (the second
    # update would take what the policy before it said) or always False (nothing would be saved)
    options = {"updates_per_batch": 2, "same_noise": same_noise, "guidance_gradient": "conditional"}
    stage = make_stage(sampling=Sampling(4, guidance=2.0), **options)
    rollout, columns = stage.rollout(batch), [0, 1]
    reused = gradients(stage, rollout, columns)
    again = replace(rollout, trajectory=replace(rollout.trajectory, unguided=None))
    assert torch.equal(reused, gradients(stage, again, columns))

    computed = []
    stage.unguided_velocity = lambda *args: computed.append(1) or DecoderRL.unguided_velocity(stage, *args)
    without_trainer(stage)
    stage.update(rollout, torch.linspace(-1, 1, 8))
    assert len(computed) == 2  # of two updates with two steps each


def toy(stage):
    """(weight t, rollout of 100,000 pictures, rewards): a decoder of one weight, v_cond = t (x + 1), v_uncond = t x."""
    t, pictures, generator = torch.tensor(0.3, requires_grad=True), 100_000, torch.Generator().manual_seed(0)
    stage.decoder.velocity = lambda x, sigma, conditioning: t * (x + (conditioning is not None))
    stage.decoder.decode_latents = lambda latents: latents
    conditioning = Conditioning(torch.zeros(pictures, 1, 1), torch.ones(pictures, 1, dtype=torch.bool))
    noise = torch.randn(pictures, 1, 1, 1, generator=generator)
    with torch.no_grad():
        path, _ = stage.sample_trajectory(conditioning, None, noise, generator)
    return t, ImageRollout(None, conditioning, None, path, None), -(path.after[0].flatten() - 1).square()


@pytest.mark.parametrize("moved", [0.0, 0.02], ids=["on policy", "off policy"])
@pytest.mark.parametrize("branches", ["both", "conditional"])
def test_the_gradient_of_guided_steps_is_exact(make_stage, branches, moved):
    # red if the unguided velocity is detached under "both", or not under "conditional", or reused under "both". In the
    # toy the guided v is t (x + g), the step is a Gaussian, and the gradients of its density and of the expected reward
    # are closed forms
    guidance = 5.0
    options = {"sampling": Sampling(3, guidance), "window": (1, 2), "same_noise": False, "clip": 100.0}
    stage = make_stage(guidance_gradient=branches, **options)
    t, rollout, rewards = toy(stage)
    path, advantages, rows = rollout.trajectory, rewards - rewards.mean(), torch.arange(len(rewards))
    with torch.no_grad():
        t += moved
    loss, _ = stage.step_loss(rollout, rows, 0, advantages, on_policy=not moved)
    (found,) = torch.autograd.grad(-loss.mean(), t)

    x, sigmas = path.before[0], stage.decoder.schedule(3)
    velocity = (t * (x + guidance)).detach().requires_grad_()
    step = sde_step(x, velocity, sigmas[1], sigmas[2], 0.7, prev=path.after[0])
    (by_velocity,) = torch.autograd.grad(step.mean.sum(), velocity)  # mean is linear in v
    slope = by_velocity * {"both": x + guidance, "conditional": guidance * (x + 1)}[branches]  # d mean / dt
    score = ((path.after[0] - step.mean) / step.std**2 * slope).flatten()
    ratio = (step.mean_log_prob - path.logp[:, 0]).exp()
    torch.testing.assert_close(found, (ratio * score * advantages).mean().detach(), rtol=1e-4, atol=1e-5)
    exact = (-2 * (step.mean - 1) * by_velocity * (x + guidance)).mean().item()  # of the expected reward
    assert (found.item() == pytest.approx(exact, rel=0.05)) == (branches == "both")


def test_the_loss_is_that_of_diffusers_sd3_scripts(make_encoder, make_projector, make_decoder, batch):
    # red if an option does not reach `sample_sigma`, or the weight multiplies another picture's error: the loss of the
    # scripts' defaults, the squared error of x0 at levels around .75
    options = {"sigma_mean": 1.0986, "sigma_std": 0.5, "precondition_outputs": True, "condition_dropout": 0.0}
    stage = DecoderPretrain(make_encoder(), make_projector(), make_decoder(train="all"), **options)
    without_trainer(stage)
    seen, velocity = [], stage.decoder.velocity
    stage.decoder.velocity = lambda *args: seen.append((*args[:2], velocity(*args))) or seen[-1][-1]
    loss = stage.training_step(batch, 0)
    ((x, sigma, found),) = seen
    clean = x - sigma.view(-1, 1, 1, 1) * found
    torch.testing.assert_close(loss, (clean - stage.latents_of(batch)).square().mean())
    many = flow.sample_sigma(9999, **stage.levels, generator=torch.Generator().manual_seed(0)).logit()
    assert many.mean() == pytest.approx(1.0986, abs=0.02) and many.std() == pytest.approx(0.5, abs=0.02)


def test_levels_that_cannot_be_are_refused_before_training(make_encoder, make_projector, make_decoder):
    # red if `sigma_levels` does not draw
    for kind in (DecoderPretrain, DecoderMatching):
        with pytest.raises(ValueError, match="mode_scale"):
            kind(make_encoder(), make_projector(), make_decoder(train="lora"), sigma_distribution="mode",
                 sigma_mode_scale=3.0)  # fmt: skip


def test_ratio_norm_needs_densities(make_stage):
    # red if the check goes
    with pytest.raises(ValueError, match="ratio_norm"):
        make_stage(ratio_norm=True, log_prob="squared_error")
