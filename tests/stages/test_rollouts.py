"""What does not depend on micro-batches and ranks, and what becomes of bad captions and bad rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import small_stages as small
import torch
from torch import Tensor

from callbacks import RewardCallback, StageCheckpoint
from uae_lightning.algorithms.advantages import group_advantages
from uae_lightning.algorithms.flow_sde import draw_noise
from uae_lightning.autoencoder import Captioning
from uae_lightning.interfaces import Reward
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.policies import captions as caption_policy
from uae_lightning.policies.captions import CaptionActs, take
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.common import Stage
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.policy import Rollout
from uae_lightning.types import Captions, RewardInput, RewardOutput

make_stage, gradients_of_update, reward = small.make_stage, small.gradients_of_update, small.reward


@pytest.mark.parametrize(
    ("kind", "options"),
    [(DecoderRL, {"same_noise": True}), (DecoderRL, {"same_noise": False}), (DecoderMatching, {})],
)
def test_pictures_do_not_depend_on_the_micro_batch(make_stage, kind, options):
    # red if all pictures draw from one generator: lowering micro_batch when memory runs out would draw other pictures
    stage = make_stage(kind, captioning=Captioning(0.0, 4), micro_batch=8, **options)
    batch = next(iter(ScenesData(batch_size=2).train_dataloader()))
    pictures = []
    for stage.policy.micro_batch in (8, 4, 1):
        pictures.append(stage.rollout(batch).reward_input.reconstructions)
    assert not torch.allclose(pictures[0][0], pictures[0][1], atol=1e-2)
    for others in pictures[1:]:
        torch.testing.assert_close(others, pictures[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [DecoderRL, DecoderMatching])
def test_pictures_are_drawn_from_their_own_captions_too(make_stage, kind):
    # red if the encoder's texts stand in front, or `given` does not follow them
    stage = make_stage(kind, own_captions=0.5, captioning=Captioning(0.0, 4))
    batch, size = next(iter(ScenesData(batch_size=3).train_dataloader())), stage.policy.group_size
    rollout = stage.rollout(batch)
    written = stage.autoencoder.write(batch.images, 1).texts
    expected = [written[0], batch.captions[1], written[2]]
    assert rollout.captions.texts == expected != written
    assert rollout.reward_input.captions == [text for text in expected for _ in range(size)]
    assert rollout.reward_input.given.tolist() == [False] * size + [True] * size + [False] * size
    assert torch.equal(rollout.acts[0].conditioning.mask[::size].sum(1), lengths(stage, expected))

    stage.own_captions, stage.autoencoder.encoder.generate = 1.0, None  # nobody has to write
    assert stage.rollout(batch).captions.texts == batch.captions
    batch.captions[1] = ""
    with pytest.raises(ValueError, match=f"{batch.keys[1]} has none: .*, or set model.init_args.own_captions to 0"):
        stage.rollout(batch)


def lengths(stage: Stage, texts: list[str]) -> Tensor:
    return stage.encoder.embed(texts)[1].sum(1)


def test_noise_belongs_to_a_picture_of_the_global_batch(make_stage, monkeypatch):
    # red if the place of a picture is counted from the first of its rank
    stage = make_stage(DecoderRL)
    alone = draw_noise((8, 2), stage.generators(1, 8), torch.device("cpu"))
    monkeypatch.setattr("uae_lightning.stages.common.rank", lambda: 1)
    assert torch.equal(draw_noise((4, 2), stage.generators(1, 4), torch.device("cpu")), alone[4:])
    assert len(alone.unique()) == 16


def health_of_update(stage: Stage, rollout, advantages: Tensor, micro_batch: int = 8) -> dict[str, float]:
    stage.health = {}
    gradients_of_update(stage, rollout, advantages, micro_batch)
    return dict(stage.health)


def test_metrics_are_means_of_tokens(make_stage, monkeypatch):
    # red if the share of a micro-batch is len(rows) / len(mask), or that of a rank is of its own tokens
    stage = make_stage(EncoderRL, kl_beta=0.01)
    for name, parameter in stage.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # else there is no distance to the reference
    rollout = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader())))
    lengths = torch.tensor([1, 9, 3, 10, 2, 10, 1, 1])
    mask = torch.arange(10) < lengths[:, None]
    tokens = torch.nn.functional.pad(rollout.captions.tokens, (0, 10))[:, :10]
    rollout = with_captions(rollout, Captions(rollout.captions.texts, tokens, mask, torch.full(mask.shape, -1.0)))
    advantages = torch.linspace(-1, 1, 8)
    with torch.no_grad():
        logp, entropies = stage.encoder.token_logprobs(rollout.acts[0].seen, rollout.captions, temperature=1.0)
    whole = health_of_update(stage, rollout, advantages)
    assert whole["entropy"] == pytest.approx(entropies[mask].mean().item(), rel=1e-5)
    assert whole["first_log_ratio_mean"] == pytest.approx((logp + 1).abs()[mask].mean().item(), rel=1e-5)
    names = ("entropy", "kl_reference", "ratio_mean", "clip_fraction", "first_log_ratio_mean")
    for size in (4, 1):
        parts = health_of_update(stage, rollout, advantages, size)
        assert [parts[name] for name in names] == pytest.approx([whole[name] for name in names], rel=1e-4)

    monkeypatch.setattr(caption_policy, "mean_over_ranks", lambda own: mask.sum().float() / 2)
    halves = []
    for half in (slice(0, 4), slice(4, 8)):
        rows = torch.arange(8)[half]
        acts = CaptionActs(rollout.acts[0].seen[rows[:1] // 4], take(rollout.captions, rows))
        own = replace(rollout, acts=[acts], captions=acts.captions)
        halves.append(health_of_update(stage, own, advantages[half], 2))
    for name in names:
        assert (halves[0][name] + halves[1][name]) / 2 == pytest.approx(whole[name], rel=1e-4)


def with_captions(rollout: Rollout, captions: Captions) -> Rollout:
    return replace(rollout, acts=[replace(rollout.acts[0], captions=captions)], captions=captions)


def scored(total: Tensor) -> RewardOutput:
    return RewardOutput(total, {"test": total})


def cut_captions(stage: Stage):
    """A rollout of 8 captions of which the limit cuts the second; the fourth ends just there."""
    rollout = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader())))
    captions = rollout.captions
    lengths = torch.tensor([3, 10, 3, 10, 3, 3, 3, 3])
    mask = torch.arange(10) < lengths[:, None]
    tokens = torch.nn.functional.pad(captions.tokens, (0, 10))[:, :10]
    return with_captions(rollout, Captions(captions.texts, tokens, mask, cut=torch.arange(8) == 1))


def test_cut_captions_are_paid_masked_or_docked(make_stage):
    # red if `~` goes from token_weights, or `-` from rewards; the share of cut captions is told in any case
    plain = make_stage(EncoderRL, normalization="dapo")
    rollout, scores = cut_captions(plain), scored(torch.ones(8))
    weights = plain.policy.token_weights(rollout.captions)
    assert torch.equal(plain.policy.rewards(rollout.acts[0], scores).total, scores.total) and (weights[1] > 0).all()
    stage = make_stage(EncoderRL, normalization="dapo", mask_cut_captions=True, cut_penalty=0.25)
    assert stage.policy.rewards(rollout.acts[0], scores).total.tolist() == [1.0, 0.75] + [1.0] * 6
    masked = stage.policy.token_weights(rollout.captions)
    assert not masked[1].any() and masked[3].all() and masked.sum() == pytest.approx(1.0)
    assert health_of_update(stage, rollout, torch.linspace(-1, 1, 8))["cut_captions"] == 1 / 8


def test_the_encoder_says_which_captions_were_cut(make_stage, images):
    # red if `== 0` becomes `== 1`
    encoder = make_stage(EncoderRL).encoder
    options = {"samples": 4, "temperature": 1.0, "max_new_tokens": 3, "seed": 0}
    tokens = encoder.generate(images, **options).tokens
    row = next(row for row, words in enumerate(tokens.tolist()) if words[2] not in words[:2])
    encoder.ends = [int(tokens[row, 2])]  # this caption ends just at the limit
    captions = encoder.generate(images, **options)
    assert torch.equal(captions.cut, ~(captions.tokens == encoder.ends[0]).any(1))
    assert not captions.cut[row] and captions.lengths[row] == 3 and captions.cut.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_a_group_with_a_reward_that_is_no_number_is_skipped_and_counted(make_stage, bad, scale):
    # red if the deviation of "batch_std" is taken over the skipped group as well, or only the bad sample is left out
    stage, rewards = make_stage(EncoderRL), torch.tensor([1.0, 2.0, bad, 0.0, 3.0, 5.0, 4.0, 4.0])
    advantages = stage.advantages(scored(rewards), 4, scale)
    assert torch.equal(advantages[4:], group_advantages(rewards[4:], 4, scale=scale)) and not advantages[:4].any()
    assert stage.health == {"zero_variance_share": 0.0, "skipped_groups": 1.0}
    assert not stage.advantages(scored(torch.full((8,), bad)), 4, scale).any() and stage.health["skipped_groups"] == 2.0


class BrokenOnce(Reward):
    """NaN for one picture at the call of that number."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def forward(self, inputs: RewardInput) -> RewardOutput:
        self.left -= 1
        output = reward(inputs)
        if self.left == 0:
            output.total[0] = torch.nan
        return output


def trained(stage: Stage, folder: Path, broken_at: int, **options) -> dict[str, Tensor]:
    """Three steps from where the folder's checkpoint stands; what is trained then."""
    saver, last = StageCheckpoint(folder, "last", every_n_train_steps=100), folder / "last.ckpt"
    trainer = L.Trainer(
        max_steps=3, max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, accelerator="cpu", plugins=[AtomicCheckpointIO()],
        callbacks=[RewardCallback(BrokenOnce(broken_at), **options), saver],
    )  # fmt: skip
    trainer.fit(stage, datamodule=ScenesData(batch_size=2), ckpt_path=last if last.exists() else None)
    return {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL])
def test_a_nan_reward_costs_no_step_and_no_batch(make_stage, tmp_path, kind):
    # red if `batches_seen` is saved as it is, or the checkpoint goes: noise and captions would be others
    torch.manual_seed(0)  # of LoRA
    stage = make_stage(kind)
    start = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    expected = trained(stage, tmp_path / "straight", 0)
    stage.load_state_dict(start)
    with pytest.raises(FloatingPointError, match="BrokenOnce: 'total' is NaN"):
        trained(stage, tmp_path / "failed", 2)
    assert torch.load(tmp_path / "failed" / "last.ckpt", weights_only=True)["global_step"] == 1
    stage.load_state_dict(start)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained(stage, tmp_path / "failed", 0).items())


def test_a_run_goes_on_past_a_group_that_is_skipped(make_stage, tmp_path):
    # red if `total` of the callback, or the advantages, keep the NaN
    stage = make_stage(DecoderRL)
    weights = trained(stage, tmp_path, 2, skip_bad_rewards=True)
    assert stage.batches_seen == 3 and all(tensor.isfinite().all() for tensor in weights.values())
