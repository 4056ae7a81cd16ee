"""RL of the rewriter: prompts without pictures are rewritten, drawn, and judged by the prompts as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_stages as small
import test_prompts_rl as prompted
import torch

from callbacks import RewardCallback
from uae_lightning.autoencoder import Captioning
from uae_lightning.planning.stage_plan import plan_built
from uae_lightning.planning.step import Setting
from uae_lightning.policies.captions import take
from uae_lightning.rewards.caption_likelihood import CaptionLikelihood
from uae_lightning.run.folder import read_rows
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.prompt_data import ScenePromptData
from uae_lightning.stages.memory_replay import Replay
from uae_lightning.stages.rewrite_rl import RewriteRL
from uae_lightning.types import Learn

make_stage = small.make_stage


@pytest.fixture
def make(make_stage):
    return lambda **options: make_stage(RewriteRL, learn=Learn(encoder=small.SMALL), **options)


@pytest.fixture
def batch():
    return next(iter(ScenePromptData(batch_size=2).train_dataloader()))


def test_two_steps_from_prompts_and_a_resume_to_the_bit(make, tmp_path):
    # red if the reward is given the rewrite (Redness compares with the metadata), in training or in validation, or if
    # the seeds of rewrites are not those of the run
    torch.manual_seed(0)
    stage = make()
    start = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    expected = prompted.fit(stage, tmp_path / "straight", prompted.Redness())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in expected.items())
    assert all(name.startswith(small.ENCODER) for name in expected)
    rows = read_rows(tmp_path / "straight")
    assert [row["step"] for row in rows] == [0, 2] and len(rows[0]["keys"]) == 4
    stage.load_state_dict(start)
    prompted.fit(stage, tmp_path / "stopped", prompted.Redness(), steps=1)
    found = prompted.fit(stage, tmp_path / "stopped", prompted.Redness(), resume=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert read_rows(tmp_path / "stopped")[-1] == rows[-1]


def test_rewrites_are_drawn_and_prompts_judged(make, batch):
    # red if the prompts are drawn as they are, if the reward reads rewrites or takes the prompts for the encoder's own,
    # or if every rewrite has a noise of its own
    stage, read = make(), []
    read_ = stage.autoencoder.read
    stage.autoencoder.read = lambda texts, **options: read.append(texts) or read_(texts, **options)
    rollout = stage.rollout(batch)
    inputs, texts = rollout.reward_input, rollout.captions.texts
    assert inputs.captions == [prompt for prompt in batch.captions for _ in range(4)]
    assert inputs.given.all() and inputs.metadata == batch.metadata_of_each(4)
    assert read == [list(dict.fromkeys(texts[:4])) + list(dict.fromkeys(texts[4:]))]
    assert len({*texts} - {*batch.captions}) > 4  # an empty one leaves its prompt
    alone = stage.autoencoder.draw(read_([texts[4]]), stage.noise_of_groups(batch)[1:])[0]
    torch.testing.assert_close(inputs.reconstructions[4], alone, atol=1e-5, rtol=1e-5)


def test_validation_draws_the_rewrite_and_asks_for_the_prompt(make, batch):
    # red if held-out prompts are drawn as they are (what is learnt would not be seen), or the gallery has the prompts
    stage, drawn = make(captioning=Captioning(0.0, 6)), []
    generate = stage.autoencoder.generate
    stage.autoencoder.generate = lambda texts, seed: drawn.append(texts) or generate(texts, seed)
    output = stage.validation_step(batch, 0)
    rewrites = stage.autoencoder.rewrite(batch.captions)
    assert output.inputs.captions == batch.captions and output.drawn == rewrites.texts == drawn[0]
    assert output.caption_tokens.equal(rewrites.lengths)


def test_on_policy_the_ratio_is_one(make, tmp_path):
    # red if rewrites are scored as captions of pictures, after another prompt, or without the tokens of their thoughts
    stage = make(kl_beta=0.01)
    prompted.fit(stage, tmp_path, prompted.Redness(), steps=1)
    assert stage.health["first_log_ratio"] <= 1e-4
    assert stage.health["ratio_mean"] == pytest.approx(1.0, abs=1e-12)
    assert stage.health["zero_variance_share"] == 0


def test_a_better_rewrite_becomes_more_likely(make, batch):
    # red if the sign of the surrogate is turned round, or rewrites are dealt to other prompts
    stage = make(kl_beta=0.0)
    rollout, advantages = stage.rollout(batch), torch.tensor([1.0, -1, 0.5, -0.5, -1, 1, -0.5, 0.5])
    small.gradients_of_update(stage, rollout, advantages, 4)
    with torch.no_grad():
        for parameter in stage.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad / parameter.grad.norm().clamp(min=1e-12)
        rows, acts = torch.arange(8), rollout.acts[0]
        after, _ = stage.policy.logprobs(stage.policy.pictures(acts.seen, rows), take(acts.captions, rows))
    change = ((after - rollout.captions.logp) * rollout.captions.mask).sum(1)
    assert (change * advantages).mean() > 0


def test_thoughts_are_learnt_and_not_drawn(make, batch):
    # red if the tokens are those of the text that is left
    stage = make()
    generate = stage.encoder.generate
    stage.encoder.generate = lambda *args, **options: replace(
        (said := generate(*args, **options)), texts=["<think> two </think> a red cat ."] * len(said.texts)
    )
    captions = stage.rollout(batch).captions
    assert set(captions.texts) == {"a red cat ."} and captions.mask.sum() > 8


def test_pictures_are_refused(make):
    # red if pictures are captioned, or their captions rewritten
    pictures = next(iter(ScenesData(batch_size=2).train_dataloader()))
    for step in ("training_step", "validation_step"):
        with pytest.raises(ValueError, match="RewriteRL rewrites prompts, .*: set data.class_path to"):
            getattr(make(), step)(pictures, 0)


def test_the_likelihood_of_the_prompt_is_a_reward_and_replay_keeps_what_is_read(make, make_encoder, tmp_path):
    # red if the memory of replay is of the batch, which has no pictures, or a frozen reader is asked for an original
    stage = make(auxiliaries=[Replay(1.0, ScenesData(batch_size=2), batches=2)])
    prompted.fit(stage, tmp_path, CaptionLikelihood(make_encoder()))
    rows = read_rows(tmp_path)
    assert rows[0]["reward_name"] == "CaptionLikelihood" and max(rows[0]["reward"]) < 0


def test_it_is_planned_with_a_memory(make, make_encoder):
    # red if a prompt is taken for pictures, or the memory of replay is made of prompts
    texts = {"caption_system": "", "caption_prompt": "describe the picture", "generate_system": ""}
    setting = Setting(pictures=2, validation_pictures=1, gpu=False, prompt_words=20)
    stage = make(auxiliaries=[Replay(1.0, ScenesData(batch_size=2), batches=2)])
    plan = plan_built("plan", stage, RewardCallback(CaptionLikelihood(make_encoder())), setting, texts)
    assert plan.phases["captions"].calls["tokens"] == 2 * 4 * 10 and plan.phases["auxiliaries"].flops > 0
