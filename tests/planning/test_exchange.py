"""What devices exchange in a step, planned, against what FSDP2 hands to its collectives."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import SCENES_PROMPTS
from staged import staged
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from callbacks import RewardCallback
from uae_lightning import cli
from uae_lightning.autoencoder import Captioning
from uae_lightning.parallel.sharding import shard
from uae_lightning.planning.sharding import GATHERED, Devices, gathered_size, sharded_tensors
from uae_lightning.planning.stage_plan import plan_built
from uae_lightning.planning.step import Setting
from uae_lightning.planning.text import caption, give_text
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Batch, Learn, LoRA, Sampling

PROMPTS = {name: SCENES_PROMPTS[name] for name in ("caption_system", "caption_prompt", "generate_system")}
SETTING = Setting(pictures=2, validation_pictures=1, gpu=False)
RANKS = 4


@pytest.fixture
def stage(make_encoder, make_projector, make_decoder):
    options = {"captioning": Captioning(max_new_tokens=24), "sampling": Sampling(steps=2)}
    learn = Learn(projector="all", decoder="all")
    return lambda: staged(DecoderPretrain, make_encoder(), make_projector(), make_decoder(), learn=learn, **options)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch):
    """Bytes that rank 0 of RANKS gets of collectives that move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    counts: Counter = Counter()

    def counted(name: str, whole: str):
        run = getattr(dist, name)

        def call(*args, **kwargs):
            tensor = kwargs[whole] if whole in kwargs else args[0]
            counts[name] += tensor.nbytes * (RANKS - 1) // RANKS
            return run(*args, **kwargs)

        monkeypatch.setattr(dist, name, call)

    counted("all_gather_single", "output_tensor")
    counted("reduce_scatter_single", "input")
    yield counts
    dist.destroy_process_group()


def test_weights_and_gradients_are_those_of_fsdp2(stage, received):
    # red if a block's backward pass counts no gathering, or `keep` is 1 / devices.count
    planned = plan_built("plan", stage(), None, SETTING, PROMPTS, Devices(RANKS, "fsdp")).exchange
    real = stage()
    mesh = init_device_mesh("cpu", (RANKS,))
    outside = 0  # of the blocks, which a plan leaves out
    for part in (real.encoder, real.projector, real.decoder):
        shard(part, mesh)
        inside = {id(parameter) for block in part.blocks() for parameter in block.parameters()}
        outside += sum(p.nbytes for p in part.parameters() if p.requires_grad and id(p) not in inside)
    give_text(real.encoder, PROMPTS)
    real._trainer = SimpleNamespace(strategy=None, global_rank=0, world_size=RANKS, global_step=0, training=True)
    real.log = lambda *args, **options: None
    texts = [caption(24, row) for row in range(2)]
    side = real.decoder.image_size
    received.clear()
    real.training_step(Batch(torch.rand(2, 3, side, side), texts, ["0", "1"]), 0).backward()
    beyond = outside * (RANKS - 1) // RANKS  # a rank's, once in each pass: forward, backward
    assert received["all_gather_single"] == planned.weights + 2 * beyond > 10 * beyond
    assert received["reduce_scatter_single"] == planned.gradients + beyond


def test_a_rollout_gathers_the_encoder_once_for_all_of_its_tokens(make_encoder, make_projector, make_decoder):
    # red without `calls.pop(GATHERED)` in Generation, or without ROLLOUTS in `exchange`
    stage = staged(
        EncoderRL, make_encoder(), make_projector(), make_decoder(), learn=Learn(encoder=LoRA()), group_size=4,
        micro_batch=4, captioning=Captioning(max_new_tokens=8), sampling=Sampling(steps=2),
    )  # fmt: skip
    plan = plan_built("plan", stage, RewardCallback(PixelSimilarity()), SETTING, PROMPTS, Devices(RANKS, "fsdp"))
    assert plan.phases["captions"].calls[GATHERED] == 0 < plan.phases["update"].calls[GATHERED]
    whole = plan.calls[GATHERED] + gathered_size(sharded_tensors(stage.encoder), False)
    assert plan.exchange.weights == whole * (RANKS - 1) // RANKS and plan.exchange.gradients > 0


def test_ddp_reduces_gradients_once_a_step(stage):
    plan = plan_built("plan", stage(), None, SETTING, PROMPTS, Devices(RANKS, "ddp"))
    assert plan.exchange.weights == 0 and plan.exchange.gradients == int(1.5 * plan.gradients)


def test_nodes_and_link_are_options(capsys):
    # red if --nodes is not handed on
    small = ["--data.init_args.batch_size", "2", "--data.init_args.validation_batch_size", "2", "--tflops", "1"]
    call = ["plan", "--config", "conf/scenes/decoder_pretrain.yaml", *small, "--trainer.devices", "2"]
    assert cli.main([*call, "--trainer.strategy", "fsdp", "--nodes", "3", "--link", "1"]) == 0
    printed = capsys.readouterr().out
    assert "each of 6 devices, fsdp" in printed and "GB of weights" in printed and "at 1 GB/s" in printed
    assert cli.main([*call, "--nodes", "0"]) == 2
