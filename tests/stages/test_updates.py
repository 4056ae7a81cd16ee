"""The arithmetic of the updates: ratios, micro-batches, and which way likelihoods go."""

from __future__ import annotations

import pytest
import small_stages as small
import torch
from small_stages import Watch, fit, gradients_of_update

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.advantages import group_advantages
from uae_lightning.policies.captions import take
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Sampling

make_stage = small.make_stage


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL])
def test_on_policy_the_ratio_is_exactly_one(make_stage, kind):
    # red if the rollout is replayed in other micro-batches, at another temperature, or with another guidance; captions
    # are sampled token by token and replayed at a time, which rounds differently
    watch = Watch()
    fit(make_stage(kind, kl_beta=0.01), 3, [watch])
    assert all(row["first_log_ratio"] <= (1e-4 if kind is EncoderRL else 0) for row in watch.rows)
    assert all(row["ratio_mean"] == pytest.approx(1.0, abs=1e-12) for row in watch.rows)


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL])
def test_a_second_update_of_one_rollout_leaves_ratio_one(make_stage, kind):
    # red if old log-probabilities are taken anew for every update
    watch = Watch()
    fit(make_stage(kind, updates_per_batch=2), 2, [watch])
    limit = 1e-3 if kind is EncoderRL else 1e-7  # of pictures log-probabilities are means over latents
    assert all(row["first_log_ratio"] <= 1e-4 and row["log_ratio_abs_max"] > limit for row in watch.rows)


def test_guidance_is_the_same_in_sampling_and_training(make_stage):
    # red if `replay` calls `decoder.velocity` directly
    watch = Watch()
    fit(make_stage(DecoderRL, sampling=Sampling(3, guidance=2.0)), 1, [watch])
    assert watch.rows[0]["first_log_ratio"] == 0.0


@pytest.mark.parametrize(
    ("kind", "options"),
    [(EncoderRL, {"normalization": name}) for name in ("grpo", "dr_grpo", "dapo")]
    + [
        (DecoderRL, {}),
        (DecoderRL, {"same_noise": True, "window": (1, 3)}),
        (DecoderMatching, {"objective": "nft"}),
        (DecoderMatching, {"objective": "awm"}),
    ],
)
def test_micro_batches_add_up_to_one_big_batch(make_stage, kind, options):
    # red if the loss of a micro-batch is divided by its own size
    stage = make_stage(kind, micro_batch=8, kl_beta=0.01, **options)
    rollout = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader())))
    advantages = torch.linspace(-1, 1, 8)
    one, several = (gradients_of_update(stage, rollout, advantages, size) for size in (8, 2))
    for name in one:
        torch.testing.assert_close(several[name], one[name], atol=1e-6, rtol=1e-3)


def test_a_better_caption_becomes_more_likely(make_stage):
    # red if the sign of the surrogate is turned round
    stage = make_stage(EncoderRL, kl_beta=0.0)
    kept = {}

    def watched_update(rollout, advantages):
        EncoderRL.update(stage, rollout, advantages)
        with torch.no_grad():
            parts = [
                stage.policy.logprobs(stage.policy.pictures(rollout.acts[0].seen, rows), take(rollout.captions, rows))[
                    0
                ]
                for rows in stage.policy.micro_batches(len(advantages))
            ]
            after = torch.cat(parts)
        change = ((after - rollout.captions.logp) * rollout.captions.mask).sum(1)
        kept["covariance"] = (change * advantages).mean().item()

    stage.update = watched_update
    fit(stage, 1)
    assert kept["covariance"] > 0


def test_a_better_picture_becomes_more_likely(make_stage):
    # red if the advantage is subtracted
    stage = make_stage(DecoderRL, kl_beta=0.0)
    kept = {}

    def watched_update(rollout, advantages):
        DecoderRL.update(stage, rollout, advantages)
        with torch.no_grad():
            rows = torch.arange(len(advantages))
            after = stage.policy.replay(rollout.acts[0], rows, 0, None).mean_log_prob
        kept["covariance"] = ((after - rollout.acts[0].trajectory.logp[:, 0]) * advantages).mean().item()

    stage.update = watched_update
    fit(stage, 1)
    assert kept["covariance"] > 0


@pytest.mark.parametrize("objective", ["nft", "awm"])
def test_matching_comes_closer_to_better_pictures(make_stage, objective):
    # red if the sign of a loss is turned round, or `good` is 1 - good
    stage = make_stage(DecoderMatching, objective=objective, advantage_clip=1.0)
    kept = {}

    def errors(rollout):
        with torch.no_grad():
            x, target = flow.interpolate(
                rollout.acts[0].latents, rollout.acts[0].noises[:, 0], rollout.acts[0].sigmas[:, 0]
            )
            velocity = stage.decoder.velocity(x, rollout.acts[0].sigmas[:, 0], rollout.acts[0].conditioning)
        return (velocity - target).square().mean((1, 2, 3))

    def watched_update(rollout, advantages):
        before = errors(rollout)
        DecoderMatching.update(stage, rollout, advantages)
        kept["covariance"] = ((errors(rollout) - before) * advantages).mean().item()

    stage.update = watched_update
    fit(stage, 1)
    assert kept["covariance"] < 0


def test_a_second_update_of_matching_compares_with_the_first(make_stage):
    # red if `old` is taken anew for every update
    watch = Watch()
    fit(make_stage(DecoderMatching, objective="awm", updates_per_batch=2), 2, [watch])
    assert all(row["log_ratio_abs_max"] > 0 for row in watch.rows)


def test_another_temperature_in_replay_shows(make_stage):
    # red if `captions.logp` is not compared: sampling and replay could drift apart unseen
    stage = make_stage(EncoderRL)
    caption, watch = stage.autoencoder.write, Watch()

    def hotter(*args):
        stage.captioning.temperature = 1.5
        captions = caption(*args)
        stage.captioning.temperature = 1.0
        return captions

    stage.autoencoder.write = hotter
    fit(stage, 1, [watch])
    assert watch.rows[0]["first_log_ratio"] > 0.1


def test_what_a_group_shares_is_computed_once(make_stage):
    # red if `<=` becomes `<`, or `x[::copies]` becomes `x`: two pictures, groups of 4, three steps of which the first
    # is deterministic; the gradients are compared by test_micro_batches_add_up_to_one_big_batch, whose small
    # micro-batches share nothing
    stage, seen = make_stage(DecoderRL, same_noise=True, window=(1, 3), micro_batch=8, kl_beta=0.0), []
    velocity = stage.decoder.velocity
    stage.decoder.velocity = lambda x, *rest: seen.append(len(x)) or velocity(x, *rest)
    rollout = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader())))
    assert seen == [2, 2, 8]
    gradients_of_update(stage, rollout, torch.linspace(-1, 1, 8), 8)
    assert seen[3:] == [2, 8] and stage.health["first_log_ratio"] == 0


def test_equal_rewards_move_nothing(make_stage):
    # red if eps is added to the advantage instead of the deviation
    assert group_advantages(torch.ones(8), 4).abs().max() == 0


def test_empty_captions_are_counted_and_do_no_harm(make_stage):
    # red if empty captions are dropped without a word
    stage, watch = make_stage(EncoderRL), Watch()
    original = stage.encoder.generate

    def mostly_empty(images, **options):
        captions = original(images, **options)
        captions.tokens[1:, 0] = stage.encoder.ends[0]
        captions.mask[1:, 1:] = False
        return type(captions)([captions.texts[0]] + [""] * (len(captions.texts) - 1), captions.tokens, captions.mask)

    stage.encoder.generate = mostly_empty
    fit(stage, 1, [watch])
    assert watch.rows[0]["empty_captions"] == 7 / 8
    assert all(torch.isfinite(parameter).all() for parameter in stage.parameters())
