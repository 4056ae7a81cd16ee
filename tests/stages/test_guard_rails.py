"""What keeps RL on captions from buying its reward: win rates, bounds on length, a target for entropy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import small_stages as small
import torch

from uae_lightning.algorithms.advantages import group_advantages, win_rates
from uae_lightning.policies.entropy_target import EntropyTarget
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import RewardOutput

sys.path.append(str(Path(__file__).parents[1] / "policies"))
from test_token_objectives import LENGTHS, Case  # noqa: E402

make_stage = small.make_stage


# ------------------------------------------------------------------------------------------------ win rates


def test_a_win_rate_is_the_share_of_siblings_that_are_beaten():
    # red if a sample is compared with itself or with another group, or an equal one is a win or a loss
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.5, 7.0, 7.0, 7.0, -1e9])
    wanted = [0, 1, 1 / 2, 1 / 2, 2 / 3, 2 / 3, 2 / 3, 0]
    torch.testing.assert_close(win_rates(rewards, 4), torch.tensor(wanted))
    assert torch.equal(win_rates(torch.tensor([1.0, 2.0]), 2), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="does not divide"):
        win_rates(rewards, 3)


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL, DecoderMatching])
def test_a_stage_compares_wins_in_place_of_values(make_stage, kind):
    # red if a stage does not take the option, or the size of a difference still counts
    stage = make_stage(kind, reward_transform="win_rate")
    close = torch.tensor([0.5, 0.501, 0.502, 0.503, 0.1, 0.1, 0.1, 0.1])
    far = torch.tensor([0.0, 0.2, 0.3, 50.0, 0.1, 0.1, 0.1, 0.1])
    found, same = (stage.advantages(RewardOutput(r, {"r": r}), 4, "group_std") for r in (close, far))
    assert torch.equal(found, same) and torch.equal(found[4:], torch.zeros(4))
    torch.testing.assert_close(found, group_advantages(win_rates(close, 4), 4))


def test_each_part_is_transformed_and_a_bad_group_is_skipped(make_stage):
    # red if the total alone is transformed, or a NaN loses to its siblings
    stage = make_stage(EncoderRL, reward_transform="win_rate", reward_balance="decoupled")
    a, b = torch.tensor([1.0, 2, 3, 4, 1, 2, 3, torch.nan]), torch.tensor([0.0, 0, 0, -9, 0, 0, 0, 0])
    stretched = RewardOutput(a + b, {"a": a, "b": 100 * b}, {"a": 1.0, "b": 1.0})
    plain = RewardOutput(a + b, {"a": a.square(), "b": b}, {"a": 1.0, "b": 1.0})
    found = stage.advantages(plain, 4, "group_std")
    torch.testing.assert_close(found, stage.advantages(stretched, 4, "group_std"))
    assert torch.equal(found[4:], torch.zeros(4)) and found[:4].abs().max() > 0.5


# ------------------------------------------------------------------------------------------------ length


def test_long_captions_are_never_reinforced():
    # red with >= for >, or if long captions that lost are left out as well
    assert LENGTHS.tolist() == [5, 2, 7, 1]
    _, every = Case().by_logp()
    case = Case(reinforced_tokens=4)
    case.advantages[2] = 1.0
    _, found = case.by_logp()
    assert (found[0] == 0).all() and (found[2] == 0).all() and (every[0] != 0).any()
    torch.testing.assert_close(torch.tensor(found[[1, 3]]), torch.tensor(every[[1, 3]]))
    _, lost = Case(reinforced_tokens=4).by_logp()
    torch.testing.assert_close(torch.tensor(lost[2]), torch.tensor(every[2]))
    _, kept = Case(reinforced_tokens=7).by_logp()
    torch.testing.assert_close(torch.tensor(kept), torch.tensor(every))


# ------------------------------------------------------------------------------------------------ entropy


def test_the_weight_follows_the_entropy():
    # red with the step the other way, or without either bound
    target = EntropyTarget(nats=0.5, step=0.01, highest=0.02)
    steps = [target.after(weight, entropy) for weight, entropy in ((0.0, 0.4), (0.015, 0.4), (0.015, 0.6), (0.0, 0.6))]
    assert steps == pytest.approx([0.01, 0.02, 0.005, 0.0])


@pytest.mark.parametrize(("nats", "weights"), [(100.0, [0.02, 0.05, 0.08]), (1e-6, [0.02, 0.0, 0.0])])
def test_a_stage_holds_its_entropy(make_stage, nats, weights):
    # red if the weight does not reach the loss, moves within a batch, or is left out of a checkpoint
    watch = small.Watch()
    stage = make_stage(EncoderRL, entropy_bonus=0.02, entropy_target=EntropyTarget(nats, 0.03, 1.0))
    small.fit(stage, 2, [watch])
    assert [row["entropy_bonus"] for row in watch.rows] == pytest.approx(weights[:2])
    assert stage.policy.entropy_bonus == pytest.approx(weights[1])
    assert stage.state_dict()["entropy_bonus"].item() == pytest.approx(weights[2])
    assert "entropy_bonus" not in make_stage(EncoderRL).state_dict()
