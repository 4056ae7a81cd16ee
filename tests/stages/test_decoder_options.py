"""Named variants of DecoderRL: the window of MixGRPO that slides, and the ratios of GRPO-Guard."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.own_stage import without_trainer
from uae_lightning.data.scenes_data import ScenesData
from uae_lightning.models.adapters import LoRA
from uae_lightning.stages.common import Captioning, Sampling
from uae_lightning.stages.decoder_rl import DecoderRL


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
    stage = make_stage(sampling=Sampling(4, guidance=2.0), updates_per_batch=2, same_noise=same_noise)
    rollout, columns = stage.rollout(batch), [0, 1]
    reused = gradients(stage, rollout, columns)
    again = replace(rollout, trajectory=replace(rollout.trajectory, unguided=None))
    assert torch.equal(reused, gradients(stage, again, columns))

    computed = []
    stage.unguided_velocity = lambda *args: computed.append(1) or DecoderRL.unguided_velocity(stage, *args)
    without_trainer(stage)
    stage.update(rollout, torch.linspace(-1, 1, 8))
    assert len(computed) == 2  # of two updates with two steps each


def test_ratio_norm_needs_densities(make_stage):
    # red if the check goes
    with pytest.raises(ValueError, match="ratio_norm"):
        make_stage(ratio_norm=True, log_prob="squared_error").on_fit_start()
