"""The baselines of the benchmarks do the work in which they are compared: same log-probabilities, loss, gradients."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch
from staged import staged

from benchmarks import decoder_rl, own_stage, plain_flow_grpo, pretrain
from benchmarks.measure import Spread, forwards
from uae_lightning.autoencoder import Captioning
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.types import Batch, Learn, LoRA

SIZES = {"group_size": 2, "micro_batch": 2}
SMALL = LoRA(rank=4, alpha=8)
CLOSE = own_stage.TOLERANCE["float32"]  # sums in another order; a wrong factor is 1e-2 and more
PUBLISHED = replace(plain_flow_grpo.PUBLISHED, steps=3, window=(0, 2), clip=1e-2)
ONE_BRANCH = replace(PUBLISHED, guidance_gradient="conditional")
DEMO = plain_flow_grpo.DEMO


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(kind, decoder, **options):
        learn = Learn(projector="all" if kind is DecoderPretrain else None, decoder=decoder)
        parts = make_encoder(), make_projector(), make_decoder()
        return staged(kind, *parts, learn=learn, captioning=Captioning(1.0, 10), **options)

    return make


@pytest.fixture
def batch(images):
    captions = ["a red cat at the middle", "", "two objects", "a small blue dog"]
    return Batch(images, captions, [str(index) for index in range(4)])


@pytest.mark.parametrize(
    ("settings", "text_length"),
    [
        (PUBLISHED, 0),
        (ONE_BRANCH, 0),
        (PUBLISHED, 40),
        (DEMO, 0),
        (replace(PUBLISHED, window=(1, 2), sde="cps", guidance=1.0), 0),
    ],
    ids=["published", "one branch", "padded as published", "demo", "another window"],
)
def test_the_plain_flow_grpo_does_the_same_as_decoder_rl(make_stage, batch, settings, text_length):
    # red if, in `transition`, `(-dt).sqrt()` becomes `-dt`, or `sigma == 1` is not looked at; if `velocity` forgets the
    # unconditional half, or detaches it where both are trained; if `loss` takes the minimum; if the KL is left out, or
    # `reference()`; if `passes` forgets the steps; if `advantages` takes the unbiased std of the batch
    stage = make_stage(DecoderRL, SMALL)
    decoder_rl.configure(stage, settings, **SIZES)
    own_stage.disturb(stage, 0.05)
    two = Batch(batch.images[:2], batch.captions[:2], batch.keys[:2])
    captions = decoder_rl.with_captions(stage, two)
    plain = plain_flow_grpo.PlainFlowGRPO(stage, settings, text_length=text_length, **SIZES)
    found = decoder_rl.differences(stage, plain, two, captions)
    assert max(found.values()) < CLOSE, found


@pytest.mark.parametrize(("settings", "saved"), [(PUBLISHED, 0), (ONE_BRANCH, 2)], ids=["both", "conditional"])
def test_every_copy_of_a_prompt_is_encoded_and_guidance_doubles_the_passes(make_stage, batch, settings, saved):
    # red if the baseline is made to encode a prompt once, or to leave the unconditional half out: it would then be
    # another loop than the published one, or ours would be counted wrongly
    stage = make_stage(DecoderRL, SMALL)
    decoder_rl.configure(stage, settings, **SIZES)
    own_stage.without_trainer(stage)
    two = Batch(batch.images[:2], batch.captions[:2], batch.keys[:2])
    captions = decoder_rl.with_captions(stage, two)
    plain = plain_flow_grpo.PlainFlowGRPO(stage, settings, **SIZES)
    stage.score = reward = decoder_rl.PixelSimilarity()
    steps = {
        "theirs": lambda: plain.step(captions, two.images, reward, decoder_rl.generators(stage, captions)),
        "ours": lambda: stage.training_step(two, 0),
    }
    with decoder_rl.rows_counted(steps, own_stage.counted_modules(stage)) as (counting, rows_per_call):
        for step in (*counting.values(), counting["ours"]):
            step()
    theirs, ours = (decoder_rl.per_picture(rows_per_call(name), 4) for name in steps)
    passes = 2 * (3 + 2 + 2)  # two branches: sampling, training, reference
    assert theirs == {"decoder/picture": passes, "encoder/picture": 1}
    assert ours == {"decoder/picture": passes - saved, "encoder/picture": 0.5}  # on policy, sampling knows a constant


@pytest.mark.parametrize(("trained", "text_length"), [(SMALL, 0), ("all", 40)], ids=["lora", "all"])
def test_the_loop_of_diffusers_does_the_same_as_decoder_pretrain(make_stage, batch, trained, text_length):
    # red if the target is `latents - noise`, `levels` is not divided by 1000, or `sigmas` takes the next place
    stage = make_stage(DecoderPretrain, trained, condition_dropout=0.0)
    own_stage.disturb(stage, 0.05)
    plain = pretrain.DiffusersLoop(stage, text_length=text_length)
    for taken in (batch, pretrain.from_cache(stage, batch)):
        found = pretrain.differences(stage, plain, batch, taken)
        assert max(found.values()) < CLOSE, found


def test_from_a_cache_nothing_is_read_anew(make_stage, batch):
    # red if `from_cache` keeps the pictures, or leaves `embedded` or `latents` out
    stage = make_stage(DecoderPretrain, SMALL, condition_dropout=0.0)
    own_stage.without_trainer(stage)
    taken = pretrain.from_cache(stage, batch)
    assert taken.images.numel() == 0 and taken.captions == batch.captions and taken.keys == batch.keys
    calls = forwards(lambda: stage.training_step(taken, 0), own_stage.counted_modules(stage))
    assert calls == {"decoder": 1, "encoder": 0}


def test_a_stage_of_other_weights_is_told_apart(make_stage, batch):
    # red if `differences` takes the gradients of the plain loop from the stage that it is compared with
    stage, other = (make_stage(DecoderPretrain, "all", condition_dropout=0.0) for _ in range(2))
    plain = pretrain.DiffusersLoop(stage)
    assert max(pretrain.differences(other, plain, batch, batch).values()) < CLOSE
    own_stage.disturb(other, 0.05)
    assert min(pretrain.differences(other, plain, batch, batch).values()) > CLOSE


def test_compiling_pays_back_after_its_seconds_over_what_a_step_saves():
    # red if the gain is upside down, or a compiled step that saves nothing is said to pay
    def row(name: str, busy: float) -> argparse.Namespace:
        return argparse.Namespace(part="step", name=name, busy=Spread(busy, busy, busy))

    rows = [row(pretrain.OURS, 2.0), row(pretrain.COMPILED, 1.5), row(pretrain.CACHED, 1.0), row(pretrain.BOTH, 1.0)]
    first, uncached, cached = pretrain.pays_back(12.0, rows).splitlines()
    assert "12.0 busy seconds" in first
    assert uncached.endswith("500 ms less a step, which pays it back after 20 steps") and cached.endswith("never")


def test_both_loops_step(make_stage, batch):
    # red if a `.step()` of an optimiser is left out
    stage = make_stage(DecoderPretrain, SMALL, condition_dropout=0.0)
    own_stage.disturb(stage, 0.05)  # a LoRA starts where its first factor has no gradient
    own_stage.without_trainer(stage)
    plain, optimizer = pretrain.DiffusersLoop(stage), stage.configure_optimizers()
    for step in (lambda: plain.step(batch), lambda: pretrain.our_step(stage, optimizer, batch)):
        before = [parameter.clone() for parameter in plain.parameters]
        step()
        assert all(not torch.equal(old, new) for old, new in zip(before, plain.parameters, strict=True))
