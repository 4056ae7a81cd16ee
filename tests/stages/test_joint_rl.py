"""Both policies in one step: who gets which advantages, and that the one update loop serves two."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import pytest
import small_stages as small
import torch
import yaml
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.cli import main
from uae_lightning.policies.captions import CaptionActs, CaptionGRPO
from uae_lightning.policies.flow_grpo import FlowGRPO
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.joint_rl import JointRL
from uae_lightning.stages.policy import Rollout
from uae_lightning.types import Captions, Learn, RewardOutput, Sampling

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_joint(make_encoder, make_projector, make_decoder):
    """Of 2 pictures, 2 captions each, 3 drawings of each caption."""

    def make(captions: dict | None = None, pictures: dict | None = None, **options) -> JointRL:
        stage = staged(
            JointRL,
            make_encoder(),
            make_projector(),
            make_decoder(),
            learn=Learn(encoder=small.SMALL, decoder=small.SMALL),
            captioning=Captioning(1.0, 10),
            sampling=Sampling(3),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
            captions=partial(CaptionGRPO, **({"group_size": 2, "micro_batch": 4} | (captions or {}))),
            pictures=partial(
                FlowGRPO, **({"group_size": 3, "micro_batch": 6, "window": (0, 2), "clip": 1e-3} | (pictures or {}))
            ),
            **options,
        )
        stage.score = small.reward
        return stage

    return make


def test_both_parts_move_and_the_ratio_is_one(make_joint):
    # red if one policy is left out of the loop, the second is replayed with another conditioning, or steps lie between
    stage, watch = make_joint(), small.Watch()
    before = small.snapshot(stage)
    small.fit(stage, 2, [watch])
    changed = {name for name, tensor in small.snapshot(stage).items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert all(any(name.startswith(part) for name in changed) for part in (small.ENCODER, small.DECODER))
    for row in watch.rows:
        assert row["captions/first_log_ratio"] <= 1e-4 and row["pictures/first_log_ratio"] == 0
        assert row["captions/ratio_mean"] == pytest.approx(1, abs=1e-12) == row["pictures/ratio_mean"]


def scored(total: torch.Tensor, **parts: torch.Tensor) -> RewardOutput:
    return RewardOutput(total, parts or {"test": total})


def test_a_caption_is_worth_the_mean_of_its_drawings(make_joint):
    # red if the mean is over captions, captions get the scores of their first drawings, or drawings of two captions
    # are compared with each other
    unscaled = {"advantage_scale": "none", "group_size": 2}
    stage = make_joint(unscaled | {"cut_penalty": 0.5}, unscaled | {"advantage_clip": 1.5})
    captions = Captions(["", ""], torch.zeros(2, 1).long(), torch.ones(2, 1).bool(), cut=torch.tensor([False, True]))
    rollout = Rollout(None, captions, [CaptionActs(None, captions), None], None)
    of_captions, of_pictures = stage.credit(rollout, scored(torch.tensor([1.0, 3.0, 5.0, 9.0])))
    assert of_captions.tolist() == [-2.25, 2.25]  # of 2 and 7 - 0.5
    assert of_pictures.tolist() == [-1.0, 1.0, -1.5, 1.5]  # the last two are clipped
    assert stage.health["captions/skipped_groups"] == stage.health["pictures/skipped_groups"] == 0


def test_each_side_learns_from_its_part_of_the_reward(make_joint):
    # red if the two options are exchanged, or the total is taken
    unscaled = {"advantage_scale": "none", "group_size": 2}
    stage = make_joint(unscaled, unscaled, caption_reward="semantic", picture_reward="detail")
    captions = Captions(["", ""], torch.zeros(2, 1).long(), torch.ones(2, 1).bool())
    rollout = Rollout(None, captions, [CaptionActs(None, captions), None], None)
    parts = {"semantic": torch.tensor([0.0, 2.0, 2.0, 4.0]), "detail": torch.tensor([1.0, 2.0, 4.0, 3.0])}
    of_captions, of_pictures = stage.credit(rollout, scored(torch.zeros(4), **parts))
    assert of_captions.tolist() == [-1.0, 1.0] and of_pictures.tolist() == [-0.5, 0.5, 0.5, -0.5]
    stage.caption_reward = "meaning"
    with pytest.raises(ValueError, match="caption_reward: .* no part 'meaning'; name one of semantic, detail, or tot"):
        stage.credit(rollout, scored(torch.zeros(4), **parts))


def test_a_drawing_without_a_reward_costs_its_caption_s_group_only(make_joint):
    # red if the mean leaves NaN out: a caption would be judged by fewer drawings than the others
    stage = make_joint({"group_size": 2}, {"group_size": 2})
    captions = Captions([""] * 4, torch.zeros(4, 1).long(), torch.ones(4, 1).bool())
    scores = scored(torch.arange(8.0).index_fill(0, torch.tensor([1]), torch.nan))
    of_captions, of_pictures = stage.credit(Rollout(None, captions, [CaptionActs(None, captions), None], None), scores)
    assert (of_captions != 0).tolist() == [False, False, True, True]
    assert (of_pictures != 0).tolist() == [False, False, *[True] * 6]


def test_micro_batches_of_both_add_up(make_joint):
    # red if the weights of one policy are those of the other
    stage = make_joint({"kl_beta": 0.01}, {"kl_beta": 0.01})
    rollout = stage.rollout(next(iter(small.ScenesData(batch_size=2).train_dataloader())))
    stage.log, stage.backward_of_micro_batch = lambda *_, **__: None, lambda loss: loss.backward()
    stage.optimizer_step_after_clipping = lambda: 0.0
    found = []
    for sizes in ((4, 12), (2, 3)):
        for policy, size in zip(stage.policies.values(), sizes, strict=True):
            policy.micro_batch = size
        stage.zero_grad()
        stage.update(rollout, torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 12))
        found.append({name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-3)


def test_acts_that_cannot_be_cut_are_refused(make_joint):
    # red if the prompts of the second policy are the pictures of the batch
    batch = next(iter(small.ScenesData(batch_size=2).train_dataloader()))
    with pytest.raises(ValueError, match=r"micro_batch \(5\) must divide pictures x group_size \(4 x 3\)"):
        make_joint(pictures={"micro_batch": 5}).training_step(batch, 0)


def test_options_of_both_are_checked(make_joint):
    with pytest.raises(ValueError, match="window must lie within the 3"):
        make_joint(pictures={"window": (2, 5)}).on_fit_start()


@pytest.mark.parametrize(("stage", "policy"), [(EncoderRL, CaptionGRPO), (DecoderRL, FlowGRPO)])
def test_a_policy_has_the_defaults_of_its_stage(stage, policy):
    # red if a default is changed in one of the two
    of_stage = inspect.signature(stage).parameters
    for name, parameter in inspect.signature(policy).parameters.items():
        assert name == "autoencoder" or of_stage[name].default == parameter.default, name


def test_it_runs_under_uae_run(parts_folder: Path, tmp_path: Path):
    # red if the weights of one part are not handed on
    options = {
        **{f"model.autoencoder.{part}.path": str(parts_folder / part) for part in ("encoder", "projector", "decoder")},
        "model.autoencoder.captioning.max_new_tokens": 6,
        "model.init_args.captions.init_args.micro_batch": 8,
        "model.init_args.pictures.init_args.micro_batch": 32,
        "model.init_args.auxiliaries": [
            {"class_path": f"uae_lightning.stages.replay.{name}", "init_args": {"weight": 0.1}}
            for name in ("DecoderReplay", "EncoderReplay")
        ],
        "data.init_args.batch_size": 2,
        "data.init_args.validation_pictures": 2,
        "data.init_args.validation_batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    stage = {"name": "joint", "config": str(ROOT / "conf/scenes/joint_rl.yaml"), "options": options}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "joint", "stages": [stage]}))
    assert main(["run", f"--config={tmp_path / 'run.yaml'}", f"--output={tmp_path / 'run'}"]) == 0
    assert {path.name for path in (tmp_path / "run/joint/weights").iterdir()} == {"encoder", "decoder"}
