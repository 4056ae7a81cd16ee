"""What every stage takes: learning rates by component, and losses beside its own."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import small_stages as small
import torch

from benchmarks.own_stage import without_trainer
from uae_lightning.run.settings import check_resumed
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.replay import DecoderReplay, EncoderReplay
from uae_lightning.usage import UsageError

make_stage = small.make_stage


@pytest.fixture
def batch():
    return next(iter(ScenesData(batch_size=2).train_dataloader()))


def gradients(stage, batch) -> dict[str, torch.Tensor]:
    """Of one step."""
    logged = without_trainer(stage)
    stage.zero_grad()
    if stage.automatic_optimization:
        stage.training_step(batch, 0).backward()
    else:
        stage.optimizer_step_after_clipping = lambda: 0.0
        stage.update(stage.rollout(batch), torch.linspace(-1, 1, 8))
    assert all(f"train/{auxiliary.name}" in logged for auxiliary in stage.auxiliaries)
    return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "replay"), [(DecoderPretrain, DecoderReplay), (EncoderRL, EncoderReplay), (DecoderRL, DecoderReplay)]
)
def test_an_auxiliary_adds_its_weighted_gradient(make_stage, batch, kind, replay):
    # red if the weight is left out, taken twice, or the loss is divided among micro-batches
    stage, auxiliary = make_stage(kind), replay(0.25)
    alone = gradients(stage, batch)
    stage.auxiliaries = [auxiliary]
    together = gradients(stage, batch)
    stage.zero_grad()
    (loss,) = stage.auxiliary_losses(batch)
    (loss / 0.25).backward()
    added = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    assert max(gradient.abs().max() for gradient in added.values()) > 1e-6
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name] + 0.25 * added[name], atol=1e-6, rtol=1e-4)


def test_an_auxiliary_draws_anew_at_each_step(make_stage, batch):
    # red if the generator is that of the batch alone, or of the stage's own loss
    stage = make_stage(DecoderPretrain, auxiliaries=[DecoderReplay(1.0), DecoderReplay(1.0)])
    without_trainer(stage)
    losses = [*stage.auxiliary_losses(batch), *stage.auxiliary_losses(batch, 1), stage.training_step(batch, 0) / 3]
    assert len({loss.item() for loss in losses}) == 5
    assert torch.equal(losses[0], next(stage.auxiliary_losses(batch)))


def test_encoder_replay_is_the_cross_entropy_of_the_captions(make_stage, batch):
    # red if padding counts, the mean is over captions, or where they end is not learnt
    stage = make_stage(EncoderRL)
    captions = stage.encoder.tokenize(batch.captions, ended=True)
    with torch.no_grad():
        logits = stage.encoder.token_logits(batch.images, captions).float()
        loss = EncoderReplay(1.0).loss(stage, batch, torch.Generator())
    wanted = torch.nn.functional.cross_entropy(logits[captions.mask], captions.tokens[captions.mask])
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize(("kind", "replay"), [(EncoderRL, EncoderReplay), (DecoderRL, DecoderReplay)])
def test_replay_without_captions_is_refused(make_stage, batch, kind, replay):
    # red if an empty text is taken for a caption
    batch.captions[1] = ""
    with pytest.raises(
        ValueError, match=f"{replay.__name__} learns from captions, and {batch.keys[1]} has none: train"
    ):
        replay(0.1).loss(make_stage(kind), batch, torch.Generator())


def test_replay_of_what_is_not_trained_is_refused(make_stage):
    # red if an auxiliary is not asked when the stage is built: its loss would have no gradient
    with pytest.raises(ValueError, match="EncoderReplay trains encoder, DecoderRL trains decoder alone: take it out"):
        make_stage(DecoderRL, auxiliaries=[EncoderReplay(0.1)])


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, bnb.optim.AdamW8bit])
def test_each_component_has_its_learning_rate(make_stage, batch, optimizer):
    # red if the rate goes to the wrong component, or one that is not named is left out of the optimizer
    options = {"optimizer": lambda groups: optimizer(groups, lr=1e-3)}
    assert len(make_stage(DecoderPretrain, **options).configure_optimizers().param_groups) == 1  # as in old checkpoints
    stage = make_stage(DecoderPretrain, learning_rates={"projector": 0.5}, **options)
    adam = stage.configure_optimizers()
    rates = {id(p): group["lr"] for group in adam.param_groups for p in group["params"]}
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.5 if name.startswith(small.PROJECTOR) else 1e-3), name
    before = small.snapshot(stage)
    gradients(stage, batch)
    adam.step()
    largest = {
        part: max((p - before[name]).abs().max() for name, p in stage.named_parameters() if name.startswith(part))
        for part in (small.PROJECTOR, small.DECODER)
    }
    assert largest[small.PROJECTOR] > 0.4 and 0 < largest[small.DECODER] < 2e-3


@pytest.mark.parametrize("name", ["encoder", "encodr"])
def test_a_learning_rate_of_what_is_not_trained_is_refused(make_stage, name):
    stage = make_stage(DecoderPretrain, learning_rates={name: 0.1})
    with pytest.raises(
        ValueError, match=f"'{name}' is not trained by this DecoderPretrain, .*projector and decoder: .*init_args.learn"
    ):
        stage.configure_optimizers()


def test_an_old_run_resumes_and_other_rates_do_not():
    # red if null is told from not given, or learning_rates goes from MIXED
    before, now = ({"model": {"init_args": {"seed": 0} | more}} for more in ({}, {"learning_rates": None}))
    assert check_resumed(before, now, "runs/x") == []
    with pytest.raises(UsageError, match=r"learning_rates.encoder \(not given\) -> 0.1"):
        check_resumed({"model": {}}, {"model": {"init_args": {"learning_rates": {"encoder": 0.1}}}}, "runs/x")
