"""Named variants of the decoder's stages: noise levels and weights, windows, guidance, the ratios of GRPO-Guard."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import torch
from staged import staged

from benchmarks.own_stage import without_trainer
from uae_lightning.algorithms import flow
from uae_lightning.algorithms.flow_sde import sde_step
from uae_lightning.autoencoder import Captioning
from uae_lightning.policies.flow_grpo import PictureActs, Trajectory
from uae_lightning.policies.matching import PolicyLag
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_pretrain import DecoderPretrain, latents_of
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.policy import PolicyStage, Rollout
from uae_lightning.types import Conditioning, Learn, LoRA, Sampling


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(kind: type[PolicyStage] = DecoderRL, **options) -> PolicyStage:
        defaults = {"group_size": 4, "micro_batch": 8, "kl_beta": 0.0, "sampling": Sampling(4), "clip": 1.0}
        defaults |= {"captioning": Captioning(1.0, 10), "learn": Learn(decoder=LoRA(rank=4, alpha=8))}
        defaults |= {"window": (0, 2), "same_noise": True} if kind is DecoderRL else {}
        stage = staged(kind, make_encoder(), make_projector(), make_decoder(), **(defaults | options))
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


def unguided_lost(acts: PictureActs) -> PictureActs:
    return replace(acts, trajectory=replace(acts.trajectory, unguided=None))


def gradients(stage, rollout, columns):
    """Of the mean surrogate of the trained steps `columns`, on policy."""
    stage.zero_grad()
    rows, advantages = torch.arange(8), torch.linspace(-1, 1, 8)
    losses = [stage.policy.loss(rollout.acts[0], rows, column, advantages, first=True)[0] for column in columns]
    torch.stack(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in stage.parameters() if p.requires_grad])


def test_the_window_slides_with_the_batches_of_the_run(make_stage, batch):
    # red if `first_window` becomes `window`, or `- 1` goes: the number of the first batch is 1 while it is trained on
    stage, places = make_stage(window=(0, 1), slide_every=2), []
    for number in range(1, 7):
        stage.batches_seen.fill_(number)
        before = stage.rollout(batch).acts[0].trajectory.before.unflatten(1, (2, 4))
        places.append(stage.policy.window)
        assert torch.equal(before[0, :, 0], before[0, :, 3])  # nothing before the window is stochastic
    assert places == [(0, 1)] * 2 + [(1, 2)] * 2 + [(2, 3)] * 2


def test_the_window_begins_again_where_it_began(make_stage, batch):
    # red if `roll_back` does not reach `sliding_window`
    stage, places = make_stage(window=(0, 1), slide_every=1, roll_back=True), []
    for number in range(1, 6):
        stage.batches_seen.fill_(number)
        places.append(stage.policy.next_window(stage))
    assert places == [(0, 1), (1, 2), (2, 3), (0, 1), (1, 2)]


def test_windows_are_drawn_anew_for_every_batch(make_stage, batch):
    # red if the seed of the draw is that of the run, or the rollout does not take the window it drew
    stage, windows = make_stage(window=(0, 1), window_within=(1, 4)), []
    for number in range(40):
        stage.batches_seen.fill_(number)
        windows.append(stage.policy.next_window(stage))
    assert set(windows) == {(1, 2), (2, 3), (3, 4)} and windows[:5] != windows[5:10]
    stage.batches_seen.fill_(windows.index((2, 3)))
    assert stage.policy.next_window(stage) == (2, 3)  # of the number of the batch: a resumed run draws the same
    rollout = stage.rollout(batch)
    assert stage.policy.window == (2, 3) and len(rollout.acts[0].trajectory.before) == 1
    assert torch.equal(
        stage.policy.replay(rollout.acts[0], torch.arange(8), 0, None).mean_log_prob,
        rollout.acts[0].trajectory.logp[:, 0],
    )


@pytest.mark.parametrize(("untrained", "spread"), [("ode", 0.0), ("sde", 1.0)])
def test_the_last_step_is_noisy_where_flow_grpo_has_it(make_stage, batch, untrained, spread):
    # red if `is_stochastic` looks at the window alone, or the noisy step is trained: as in flow_grpo's
    # sd3_pipeline_with_logprob.py all steps are stochastic and the last one, outside of the window, is kept nowhere
    stage, decoded = make_stage(window=(1, 3), untrained_steps=untrained, same_noise=False), []
    stage.decoder.decode_latents = lambda latents: (
        decoded.append(latents) or torch.zeros(len(latents), 3, IMAGE_SIZE, IMAGE_SIZE)
    )
    rollout = stage.rollout(batch)
    path, rows = rollout.acts[0].trajectory, torch.arange(8)
    assert len(path.before) == len(path.after) == 2 and path.logp.shape == (8, 2)
    last = path.after[-1]
    velocity, _ = stage.policy.velocity_at(3, last, rollout.acts[0].conditioning, None)
    step = stage.policy.sde_step(last, velocity, 3, prev=decoded[0])
    sigmas = stage.decoder.schedule(4)
    ode = flow.euler_step(last, velocity, sigmas[3], sigmas[4])
    center = step.mean if untrained == "sde" else ode
    assert ((decoded[0] - center) / step.std).std().item() == pytest.approx(spread, abs=0.05)
    loss, metrics = stage.policy.loss(rollout.acts[0], rows, 1, torch.ones(8), first=True)
    assert metrics["log_ratio_abs_max"] == 0


def test_noise_before_the_window_is_no_shared_state(make_stage, batch):
    # red if `velocity_at` shares up to the window although steps before it are stochastic
    stage = make_stage(window=(1, 2), untrained_steps="sde")
    rollout, seen, velocity = stage.rollout(batch), [], stage.decoder.velocity
    stage.decoder.velocity = lambda x, *rest: seen.append(len(x)) or velocity(x, *rest)
    states = rollout.acts[0].trajectory.before[0].unflatten(0, (2, 4))
    assert not torch.equal(states[:, 0], states[:, 1])
    assert stage.policy.replay(rollout.acts[0], torch.arange(8), 0, None).mean_log_prob.equal(
        rollout.acts[0].trajectory.logp[:, 0]
    )
    assert seen == [8]


@pytest.mark.parametrize("kind", [DecoderRL, DecoderMatching])
def test_steps_on_disjoint_parts_of_a_rollout(make_stage, batch, kind):
    # red if a part is trained on twice, its gradient is divided by the size of the whole, or only the first of the old
    # policies is the one that sampled: 8 pictures in 4 micro-batches, 2 optimiser steps on half of them each
    options = {"window": (1, 2), "same_noise": False} if kind is DecoderRL else {"objective": "awm", "draws": 1}
    stage = make_stage(kind, micro_batch=2, update_parts=2, **options)
    without_trainer(stage)
    loss_of, step, taken, norms = stage.policy.loss, stage.optimizer_step_after_clipping, [], []

    def watched(acts, rows, *args, **keywords):
        loss, metrics = loss_of(acts, rows, *args, **keywords)
        taken.append((len(norms), rows.tolist(), float(metrics["log_ratio_abs_max"])))
        return loss, metrics

    stage.policy.loss = watched
    stage.optimizer_step_after_clipping = lambda: norms.append(step()) or norms[-1]
    stage.update(stage.rollout(batch), torch.ones(8))
    assert [place for place, _, _ in taken] == [0, 0, 1, 1] and len(norms) == 2
    assert sorted(sum((rows for _, rows, _ in taken), [])) == list(range(8))
    ratios = [ratio for *_, ratio in taken]
    assert max(ratios[:2]) < 1e-6 < min(ratios[2:]), ratios


def test_a_part_counts_as_a_whole_rollout_does(make_stage, batch):
    # red if the gradients of a part are divided by the size of the whole rollout: of equal parts, their mean is its own
    stage, found = make_stage(micro_batch=2, same_noise=False), []
    without_trainer(stage)

    def step():
        found.append(torch.cat([p.grad.flatten() for p in stage.parameters() if p.requires_grad]))
        stage.zero_grad()
        return 0.0

    stage.optimizer_step_after_clipping = step
    for stage.update_parts in (1, 2):
        stage.update(stage.rollout(batch), torch.linspace(-1, 1, 8))
    whole, *parts = found
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, atol=1e-6, rtol=1e-3)


def test_the_policy_that_samples_lags_behind(make_stage, batch):
    # red if pictures are drawn by the policy in training, its velocities are those compared with, the trained weights
    # do not come back, or the lagging ones are not in the checkpoint
    lag = PolicyLag(flat=0, rate=1.0, limit=0.75)
    stage = make_stage(DecoderMatching, objective="awm", policy_lag=lag)
    without_trainer(stage)
    trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    first = stage.rollout(batch)
    stage.update(first, torch.linspace(-1, 1, 8))  # at step 0 of a stage without a Trainer nothing lags
    assert all(torch.equal(stage.policy.lagging.weights[name], p) for name, p in trained.items())
    stage.policy.lagging.weights = dict(start)
    second = stage.rollout(batch)  # of the same seed: drawn by the same weights, the same pictures
    assert torch.equal(second.acts[0].latents, first.acts[0].latents) and torch.equal(
        second.acts[0].old, first.acts[0].old
    )
    _, metrics = stage.policy.loss(second.acts[0], torch.arange(8), 0, torch.ones(8), first=True)
    assert metrics["log_ratio_abs_max"] > 0 and not any(torch.equal(start[name], p) for name, p in trained.items())

    stage.policy.lagging.follow(0.75)
    for name, weight in stage.policy.lagging.weights.items():
        torch.testing.assert_close(weight, 0.75 * start[name] + 0.25 * trained[name])
    checkpoint = {"state_dict": stage.state_dict()}
    stage.trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
    stage.on_save_checkpoint(checkpoint)
    other = make_stage(DecoderMatching, policy_lag=lag)
    other.on_load_checkpoint(checkpoint)
    assert all(
        torch.equal(other.policy.lagging.weights[name], weight) for name, weight in stage.policy.lagging.weights.items()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_within": (3, 4)}, "room for a window of 2"),
        ({"window_within": (2, 5)}, "within the 4 sampling steps"),
        ({"window_within": (0, 3), "slide_every": 1}, "leave one of them out"),
        ({"roll_back": True}, "set slide_every"),
    ],
)
def test_windows_that_do_not_fit_are_refused(make_stage, options, message):
    # red if a check goes
    with pytest.raises(ValueError, match=message):
        make_stage(**options).on_fit_start()


def test_parts_that_do_not_divide_are_refused(make_stage, batch):
    # red if check_group is not told of the parts
    with pytest.raises(ValueError, match="update_parts"):
        make_stage(update_parts=2).training_step(batch, 0)


def test_ratio_norm_weighs_each_step_by_its_noise_over_its_length(make_stage, batch):
    # red if `/ dt` goes, or if the loss is multiplied by it: on policy, RatioNorm turns the gradient of a step with
    # deviation std and length dt into std / dt times itself
    stage = make_stage()
    rollout, sigmas = stage.rollout(batch), stage.decoder.schedule(4)
    for column in range(2):
        std = stage.policy.replay(rollout.acts[0], torch.arange(8), column, None).std.item()
        found = []
        for stage.policy.ratio_norm in (False, True):
            found.append(gradients(stage, rollout, [column]))
        factor = std / (sigmas[column] - sigmas[column + 1]).item()
        torch.testing.assert_close(found[1], factor * found[0], atol=1e-6, rtol=1e-3)


def test_ratio_norm_is_exactly_one_on_policy_and_not_after(make_stage, batch):
    # red if `path.mean` is that of another step: the old mean must be the one the sample was drawn around
    stage = make_stage(ratio_norm=True)
    rollout, rows = stage.rollout(batch), torch.arange(8)
    _, metrics = stage.policy.loss(rollout.acts[0], rows, 1, torch.ones(8), first=True)
    assert metrics["log_ratio_abs_max"] == 0
    with torch.no_grad():
        for parameter in stage.parameters():
            if parameter.requires_grad:
                parameter *= 1.2
    _, metrics = stage.policy.loss(rollout.acts[0], rows, 1, torch.ones(8), first=False)
    assert 0 < metrics["log_ratio_abs_max"] < 1


@pytest.mark.parametrize("same_noise", [False, True])
def test_the_guidance_branch_is_computed_once_until_the_policy_moves(make_stage, batch, same_noise):
    # red if `unguided` is that of another step or not taken `[::copies]`; if `on_policy` is always True (the second
    # update would take what the policy before it said) or always False (nothing would be saved)
    options = {"updates_per_batch": 2, "same_noise": same_noise, "guidance_gradient": "conditional"}
    stage = make_stage(sampling=Sampling(4, guidance=2.0), **options)
    rollout, columns = stage.rollout(batch), [0, 1]
    reused = gradients(stage, rollout, columns)
    again = replace(rollout, acts=[unguided_lost(rollout.acts[0])])
    assert torch.equal(reused, gradients(stage, again, columns))

    computed = []
    velocity = stage.decoder.unguided_velocity
    stage.decoder.unguided_velocity = lambda *args: computed.append(1) or velocity(*args)
    without_trainer(stage)
    stage.update(rollout, torch.linspace(-1, 1, 8))
    assert len(computed) == 2  # of two updates with two steps each
    stage.policy.guidance_gradient = "both"
    assert stage.rollout(batch).acts[0].trajectory.unguided is None  # it takes memory, and has no gradient


def toy(stage):
    """(weight t, rollout of 100,000 pictures, rewards): a decoder of one weight, v_cond = t (x + 1), v_uncond = t x."""
    t, pictures, generator = torch.tensor(0.3, requires_grad=True), 100_000, torch.Generator().manual_seed(0)
    stage.decoder.velocity = lambda x, sigma, conditioning: t * (x + (conditioning is not None))
    conditioning = Conditioning(torch.zeros(pictures, 1, 1), torch.ones(pictures, 1, dtype=torch.bool))
    x, noise = torch.randn(2, pictures, 1, 1, 1, generator=generator)
    with torch.no_grad():
        velocity, unguided = stage.policy.velocity_at(1, x, conditioning, None)
        step = stage.policy.sde_step(x, velocity, 1, prev=x)
        after = step.mean + step.std * noise
        logp = stage.policy.sde_step(x, velocity, 1, prev=after).mean_log_prob
    path = Trajectory(x[None], after[None], step.mean[None], logp[:, None], unguided[None])
    return t, Rollout(None, None, [PictureActs(conditioning, None, path, None)], None), -(after.flatten() - 1).square()


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
    path, advantages, rows = rollout.acts[0].trajectory, rewards - rewards.mean(), torch.arange(len(rewards))
    with torch.no_grad():
        t += moved
    if not stage.policy.unguided_is_constant:
        rollout = replace(rollout, acts=[unguided_lost(rollout.acts[0])])
    loss, _ = stage.policy.loss(rollout.acts[0], rows, 0, advantages, first=not moved)
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
    stage = staged(
        DecoderPretrain,
        make_encoder(),
        make_projector(),
        make_decoder(),
        learn=Learn(projector="all", decoder="all"),
        **options,
    )
    without_trainer(stage)
    seen, velocity = [], stage.decoder.velocity
    stage.decoder.velocity = lambda *args: seen.append((*args[:2], velocity(*args))) or seen[-1][-1]
    loss = stage.training_step(batch, 0)
    ((x, sigma, found),) = seen
    clean = x - sigma.view(-1, 1, 1, 1) * found
    torch.testing.assert_close(loss, (clean - latents_of(stage.autoencoder, batch)).square().mean())
    many = flow.sample_sigma(9999, **stage.levels, generator=torch.Generator().manual_seed(0)).logit()
    assert many.mean() == pytest.approx(1.0986, abs=0.02) and many.std() == pytest.approx(0.5, abs=0.02)


def test_levels_that_cannot_be_are_refused_before_training(make_encoder, make_projector, make_decoder):
    # red if `sigma_levels` does not draw
    for kind in (DecoderPretrain, DecoderMatching):
        with pytest.raises(ValueError, match="mode_scale"):
            staged(kind, make_encoder(), make_projector(), make_decoder(), sigma_distribution="mode",
                 sigma_mode_scale=3.0)  # fmt: skip


def test_ratio_norm_needs_densities(make_stage):
    # red if the check goes
    with pytest.raises(ValueError, match="ratio_norm"):
        make_stage(ratio_norm=True, log_prob="squared_error").on_fit_start()
