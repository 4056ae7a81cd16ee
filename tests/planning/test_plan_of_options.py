"""`uae plan` of auxiliary losses with a memory, and of a reward that reads."""

from __future__ import annotations

import pytest
import test_plan as plans
from test_plan import PROMPTS, SETTING

from callbacks import RewardCallback
from uae_lightning import cli
from uae_lightning.commands import plan
from uae_lightning.models.adapters import lora_layers
from uae_lightning.planning.report import table
from uae_lightning.planning.stage_plan import StagePlan, plan_built
from uae_lightning.rewards.caption_likelihood import CaptionLikelihood
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.memory_replay import Replay

make_stage = plans.make_stage


def planned(stage, reward=None) -> StagePlan:
    return plan_built("plan", stage, RewardCallback(reward or PixelSimilarity()), SETTING, PROMPTS)


def test_a_replay_is_counted_once_and_its_memory_never(make_stage):
    # red if it is multiplied by the passes of the policy, the captions of the memory are charged to a step, data are
    # read (a plan is made before there are any), or a micro-batch stands for all
    def replay(**options) -> Replay:
        data = ScenesData(batch_size=4)
        data.train_dataloader = None
        return Replay(0.1, data, batches=3, **options)

    plain = planned(make_stage("encoder_rl"))
    replayed = planned(make_stage("encoder_rl", auxiliaries=[replay(micro_batch=1)]))
    assert replayed.phases.keys() - plain.phases.keys() == {"auxiliaries"}
    for name, phase in plain.phases.items():
        assert (replayed.phases[name].flops, replayed.phases[name].calls) == (phase.flops, phase.calls), name
    own = replayed.phases["auxiliaries"]
    assert own.flops > 0 and own.calls["texts read"] == 4 * 2 * 2  # a caption and a text of the data; twice each
    assert replayed.kv_cache == plain.kv_cache and "auxiliary losses" in table(replayed)
    stage = make_stage("encoder_rl", auxiliaries=[replay(micro_batch=4)])
    sums = sum(
        2 * layer.lora_A[layer.active_adapters[0]].weight.numel() * layer.out_features
        for layer in lora_layers(stage.encoder)
    )
    together = planned(stage).phases["auxiliaries"]
    # three micro-batches more, of three passes each (the prompt, captions, texts), whose adapters are added to the
    # weights there and back (`models.lora_product`), whatever the number of rows
    assert own.peak < together.peak and own.flops - together.flops == pytest.approx(3 * 3 * 2 * sums, rel=0.1)


def test_a_reward_that_reads_is_planned(make_stage, make_encoder):
    # red if the reader of a reward is left without its texts
    plan = planned(make_stage("decoder_rl"), CaptionLikelihood(make_encoder()))
    assert plan.phases["reward"].flops > 2 * planned(make_stage("decoder_rl")).phases["reward"].flops
    assert plan.parts[-1].name == "reward" and plan.parts[-1].parameters > 10**6


def test_yamls_are_laid_over_a_stage_as_for_fit(monkeypatch, capsys):
    # red if the second --config replaces the first, or none of both is laid over a run
    seen = []
    monkeypatch.setattr(plan, "planned", lambda stage, card, rate, link: seen.append(stage) or {})
    stage, over, run = (f"conf/real/{name}.yaml" for name in ("encoder_rl", "sd35_large", "run"))
    assert cli.main(["plan", "--config", stage, "--config", over, "--tflops", "1"]) == 0
    parts = seen[0].config.model.init_args.autoencoder.init_args
    assert parts.decoder.init_args.path.endswith("3.5-large") and parts.encoder.init_args.path.endswith("3B-Instruct")
    assert cli.main(["plan", "--config", run, "--config", over]) == 2
    assert f"--config {over} cannot be laid over a run: --with names" in capsys.readouterr().err
