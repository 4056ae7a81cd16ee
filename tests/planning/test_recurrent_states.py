"""`uae plan` with an encoder whose blocks are of two kinds, keys and values in one of four and states in the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import SCENES_PROMPTS
from staged import staged

sys.path.append(str(Path(__file__).parents[1] / "conf"))
import small_encoders  # noqa: E402

from benchmarks.plan_error import measure, peak_of  # noqa: E402
from callbacks import RewardCallback  # noqa: E402
from uae_lightning.autoencoder import Captioning  # noqa: E402
from uae_lightning.models.projector import MLPProjector  # noqa: E402
from uae_lightning.models.qwen3_5 import Qwen35Encoder  # noqa: E402
from uae_lightning.planning.blocks import StandIn  # noqa: E402
from uae_lightning.planning.stage_plan import plan_built  # noqa: E402
from uae_lightning.planning.step import Setting  # noqa: E402
from uae_lightning.rewards.pixel_similarity import PixelSimilarity  # noqa: E402
from uae_lightning.stages.encoder_rl import EncoderRL  # noqa: E402
from uae_lightning.types import Learn, LoRA, Sampling  # noqa: E402

PROMPTS = {name: SCENES_PROMPTS[name] for name in ("caption_system", "caption_prompt", "generate_system")}
SETTING = Setting(pictures=2, validation_pictures=1, gpu=False)


@pytest.fixture
def make_stage(tmp_path_factory, make_decoder):
    folder = tmp_path_factory.mktemp("qwen3_5")
    torch.manual_seed(0)
    small_encoders.save_qwen3_5(folder)

    def make(light: bool = False) -> EncoderRL:
        encoder = Qwen35Encoder(str(folder), checkpoint_activations=light, **SCENES_PROMPTS)
        return staged(
            EncoderRL, encoder, MLPProjector(None, small_encoders.HIDDEN, 32, 24), make_decoder(),
            learn=Learn(encoder=LoRA(rank=8)), group_size=4, micro_batch=4, kl_beta=0.01,
            captioning=Captioning(max_new_tokens=24), sampling=Sampling(steps=2),
        )  # fmt: skip

    return make


def planned(stage: EncoderRL):
    return plan_built("plan", stage, RewardCallback(PixelSimilarity()), SETTING, PROMPTS)


@pytest.mark.parametrize("light", [False, True])
def test_one_block_of_each_kind_stands_for_all(light, make_stage, monkeypatch):
    # red if states are no arguments of a block that goes on from a prompt, or count as keys that grow
    stood = planned(make_stage(light))
    monkeypatch.setattr(StandIn, "__call__", lambda block, *args, **kwargs: block.run(*args, **kwargs))
    run = planned(make_stage(light))
    assert stood.flops == run.flops and stood.weights == run.weights and stood.kv_cache == run.kv_cache
    # what a checkpointed block computed last stays until Python finds the ring it lies in: a [64, 64] matrix per head
    ring = 4 * 4 * 64 * 64 * 4 + 512 if light else 0
    for name, phase in run.phases.items():
        assert stood.phases[name].peak - run.weights == pytest.approx(phase.peak - run.weights, rel=0.1, abs=ring), name


def test_the_peak_is_the_measured_one(make_stage):
    # red if what linear attention keeps for the backward pass is not followed
    judges, plan = RewardCallback(PixelSimilarity()), planned(make_stage())
    judges.reward.eval().requires_grad_(False)
    for phase, held in measure(make_stage(), judges.score, SETTING, PROMPTS, torch.device("cpu")).items():
        assert peak_of(plan, phase) - plan.weights == pytest.approx(held - plan.weights, rel=0.15), phase


def test_states_do_not_grow_with_captions(make_stage):
    # red if `grow` takes them for keys: three layers' states [8, 4, 8, 8] float32 and inputs of convolutions [8, 64, 4]
    stage = make_stage()
    plan = planned(stage)
    keys = plan.kv_cache - 3 * 4 * (8 * 4 * 8 * 8 + 8 * 64 * 4)
    assert keys > 0 and keys % (8 * 2 * 16 * 4) == 0  # of one layer: rows, keys and values, width, float32
