"""A reward of several parts: added before the groups are compared, or after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_stages as small
import test_joint_rl as joint
import torch

from callbacks import RewardCallback
from uae_lightning.algorithms.advantages import group_advantages
from uae_lightning.algorithms.balance import decoupled_advantages
from uae_lightning.interfaces import Reward
from uae_lightning.policies.captions import CaptionActs
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.joint_rl import JointRL
from uae_lightning.stages.policy import Rollout
from uae_lightning.types import Captions, RewardInput, RewardOutput

make_stage, make_joint = small.make_stage, joint.make_joint


@pytest.fixture
def make(make_stage, make_joint):
    """A stage of 8 acts in groups of 4; of the joint one the captions, each drawn twice."""

    def stage_of(kind, **options):
        if kind is JointRL:
            return make_joint({"group_size": 4}, {"group_size": 2, "micro_batch": 8}, **options)
        return make_stage(kind, **options)

    return stage_of


def scores(stage, scale: float = 1.0) -> RewardOutput:
    """0.5 x a cosine + 2 x a penalty of one act of the second group."""
    copies = 2 if isinstance(stage, JointRL) else 1
    cosine = 0.9 + 0.01 * torch.randn(8, generator=torch.Generator().manual_seed(0))
    penalty = -scale * (torch.arange(8) == 5).float()
    parts = {name: part.repeat_interleave(copies) for name, part in {"cosine": cosine, "penalty": penalty}.items()}
    if copies > 1:  # the drawings of a caption differ a little
        parts["cosine"] = parts["cosine"] + 1e-3 * torch.tensor([-1.0, 1.0]).repeat(8)
    return RewardOutput(0.5 * parts["cosine"] + 2.0 * parts["penalty"], parts, {"cosine": 0.5, "penalty": 2.0})


def rollout(cut: list[int] = []) -> Rollout:  # noqa: B006
    captions = Captions(
        [""] * 8, torch.zeros(8, 1).long(), torch.ones(8, 1).bool(), cut=torch.isin(torch.arange(8), torch.tensor(cut))
    )
    return Rollout(None, captions, [CaptionActs(None, captions), None], None)


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL, DecoderMatching, JointRL])
def test_decoupled_parts_have_no_scale(make, kind):
    # red if a stage takes the total, or the option does not reach the base
    decoupled, summed = make(kind, reward_balance="decoupled"), make(kind)
    found = decoupled.credit(rollout(), scores(decoupled))
    for own, scaled in zip(found, decoupled.credit(rollout(), scores(decoupled, 100.0)), strict=True):
        torch.testing.assert_close(scaled, own, atol=1e-4, rtol=1e-4)
    assert found[0][5] < -1 < found[0][4]  # the penalty, beside what the cosine says
    plain, scaled = (summed.credit(rollout(), scores(summed, scale))[0] for scale in (0.001, 100.0))
    assert (plain - scaled).abs().max() > 0.5  # a sum follows the scale


def test_they_are_those_of_the_algorithm_and_clipped(make_stage):
    # red if the weights are left out, the scale of a policy is asked, or the clip is of the sum alone
    stage = make_stage(DecoderRL, reward_balance="decoupled", advantage_scale="none", advantage_clip=1.0)
    given = scores(stage)
    wanted = decoupled_advantages(given.parts, given.weights, 4)
    assert wanted.abs().max() > 1
    assert torch.equal(stage.credit(rollout(), given)[0], wanted.clamp(-1, 1))


def test_a_sum_is_compared_as_before(make_stage):
    # red if the default is "decoupled"
    stage = make_stage(EncoderRL)
    given = scores(stage)
    assert torch.equal(stage.credit(rollout(), given)[0], group_advantages(given.total, 4))


def test_a_reward_without_weights_is_one_part(make_stage):
    # red if its parts are added up where nobody says that they are terms
    stage = make_stage(EncoderRL, reward_balance="decoupled")
    given = replace(scores(stage), weights=None)
    assert torch.equal(
        stage.credit(rollout(), given)[0], decoupled_advantages({"total": given.total}, {"total": 1.0}, 4)
    )


def test_a_group_that_is_equal_in_a_part_hears_nothing_of_it(make_stage):
    # red if a part is normalised over the batch
    stage = make_stage(EncoderRL, reward_balance="decoupled")
    given = scores(stage)
    flat = replace(given, parts=given.parts | {"cosine": torch.full((8,), 0.1)})
    (found,) = stage.credit(rollout(), flat)
    assert torch.equal(found[:4], torch.zeros(4)) and (found[4:] != 0).all()
    assert stage.health["zero_variance_share"] == 0.5


def test_the_penalty_of_a_policy_is_one_more_part(make_stage):
    # red if it is taken off the total alone, which nobody looks at any more
    stage = make_stage(EncoderRL, reward_balance="decoupled", cut_penalty=0.25)
    given = scores(stage)
    parts = given.parts | {"cut": (torch.arange(8) == 2).float()}
    wanted = decoupled_advantages(parts, {"cosine": 0.5, "penalty": 2.0, "cut": -0.25}, 4)
    torch.testing.assert_close(stage.credit(rollout([2]), given)[0], wanted)


def test_a_part_that_is_no_number_costs_its_group_only(make_stage):
    # red if only the total is looked at: `decoupled_advantages` would raise
    stage = make_stage(EncoderRL, reward_balance="decoupled")
    given = scores(stage)
    broken = given.parts["cosine"].index_fill(0, torch.tensor([1]), torch.nan)
    (found,) = stage.credit(rollout(), replace(given, parts=given.parts | {"cosine": broken}))
    assert torch.equal(found[:4], torch.zeros(4)) and (found[4:] != 0).all()
    assert stage.health["skipped_groups"] == 1.0


class Words(Reward):
    """How many there are, thousands of times too loud."""

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = 1000.0 * torch.tensor([float(len(text.split())) for text in inputs.captions])
        return RewardOutput(total, {"words": total})


@pytest.mark.parametrize("kind", [EncoderRL, JointRL])
def test_weights_come_through_the_callback(make, kind, monkeypatch):
    # red if `evaluate` drops the weights when it joins micro-batches
    stage, seen = make(kind, reward_balance="decoupled"), []

    def watched(parts, weights, size):
        seen.append((sorted(parts), weights))
        return decoupled_advantages(parts, weights, size)

    monkeypatch.setattr("uae_lightning.stages.policy.decoupled_advantages", watched)
    reward = WeightedSum({"pixels": PixelSimilarity(), "words": Words()}, {"pixels": 1.0, "words": 0.5})
    small.fit(stage, 1, [RewardCallback(reward, micro_batch=3)])
    names, weights = seen[0]
    assert names == ["cut_captions", "pixels", "words"] and len(seen) == len(stage.policies)
    assert weights == {"pixels": 1.0, "words": 0.5, "cut_captions": 0.0}
