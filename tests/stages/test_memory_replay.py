"""Replay from memory: what is remembered, what the loss is, and that nothing of it is supervised."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import small_stages as small
import torch
import torch.nn.functional as F

from benchmarks.own_stage import disturb, without_trainer
from uae_lightning.algorithms.distillation import rarity_weights
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.memory_replay import Replay

make_stage = small.make_stage


class Nothing(ScenesData):
    """As a data set without captions has it."""

    def train_dataloader(self):
        for batch in super().train_dataloader():
            batch.captions = [""] * len(batch.captions)
            yield batch


def replay(**options) -> Replay:
    data = options.pop("data", None) or ScenesData(batch_size=2, seed=1)
    return Replay(0.5, data, **({"batches": 3, "micro_batch": 2} | options))


def begun(make_stage, disturbed: float = 0.3, **options):
    """A stage, its replay, and a batch; the encoder has moved since the memory was made, or not."""
    own = replay(**options)
    stage = make_stage(EncoderRL, auxiliaries=[own])
    without_trainer(stage)
    own.begin(stage)
    disturb(stage, disturbed)
    return stage, own, next(iter(ScenesData(batch_size=2).train_dataloader()))


def total(stage, own: Replay, batch) -> torch.Tensor:
    return own.loss(stage, batch, torch.Generator())


def test_the_memory_is_what_the_encoder_writes_without_adapters(make_stage):
    # red if captions are the data's, or are written with the adapters on
    stage, own, _ = begun(make_stage, disturbed=0.0)
    before = [(one.captions.tokens, one.texts) for one in own.memory]
    pictures = [batch for batch, _ in zip(ScenesData(batch_size=2, seed=1).train_dataloader(), range(3), strict=False)]
    for number, (batch, one) in enumerate(zip(pictures, own.memory, strict=True)):
        written = stage.autoencoder.write(batch.images, 1, number)
        assert torch.equal(written.tokens, one.captions.tokens)
        assert one.texts == [[own_text, text] for own_text, text in zip(written.texts, batch.captions, strict=True)]
        assert not set(written.texts) & set(batch.captions)
    disturb(stage, 0.3)  # as a run is that goes on
    state = torch.get_rng_state()
    own.begin(stage)
    assert torch.equal(state, torch.get_rng_state())
    assert [texts for _, texts in before] == [one.texts for one in own.memory]
    assert all(torch.equal(tokens, one.captions.tokens) for (tokens, _), one in zip(before, own.memory, strict=True))
    written = stage.autoencoder.write(pictures[0].images, 1, 0)
    assert not torch.equal(written.tokens, before[0][0])


def test_an_encoder_that_has_not_moved_is_left_alone(make_stage):
    # red if the loss is a cross-entropy, which pulls at any encoder
    stage, own, batch = begun(make_stage, disturbed=0.0)
    loss = total(stage, own, batch)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in stage.parameters())


def test_the_loss_is_that_of_the_definition(make_stage):
    # red if the mean is over captions, padding counts, the weights are those of one batch, or states are read with
    # their picture
    stage, own, batch = begun(make_stage, feature_weight=0.25, balance=0.9)
    encoder, one = stage.encoder, own.memory[1]
    stage.batches_seen += 1
    counts = torch.cat([each.captions.tokens[each.captions.mask] for each in own.memory]).bincount()
    with torch.no_grad():
        p = encoder.token_logits(one.seen, one.captions).log_softmax(-1)
        texts = [text for of_picture in one.texts for text in of_picture]
        states = [encoder.embed([text])[0][0] for text in texts]
        with encoder.reference():
            q = encoder.token_logits(one.seen, one.captions).log_softmax(-1)
            known = [encoder.embed([text])[0][0] for text in texts]
        loss = total(stage, own, batch)
    kl = (q.exp() * (q - p)).sum(-1)
    weights = rarity_weights(counts, 0.9)[one.captions.tokens] * one.captions.mask
    far = [(F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean() for a, b in zip(states, known)]  # noqa: B905
    distance = torch.stack(far).mean()
    assert len(set(counts.tolist())) > 1 and distance > 1e-3
    torch.testing.assert_close(loss, (kl * weights).sum() / weights.sum() + 0.25 * distance, atol=1e-5, rtol=1e-4)


def test_micro_batches_add_up(make_stage):
    # red if a micro-batch divides by its own tokens, or its own texts
    stage, own, batch = begun(make_stage)
    found = []
    for own.micro_batch in (2, 1):
        stage.zero_grad()
        losses = list(own.losses(stage, batch, torch.Generator()))
        assert len(losses) == 2 // own.micro_batch
        loss = sum(losses)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}))
    (one, gradients), (other, others) = found
    assert other == pytest.approx(one, rel=1e-4) and gradients.keys() == others.keys()
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-6
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-3)


def test_it_brings_an_encoder_back(make_stage):
    # red if a sign is turned, or the gradient does not reach the adapters
    stage, own, batch = begun(make_stage, batches=1)
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        loss = total(stage, own, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_batches_are_replayed_in_turn(make_stage):
    # red if every step replays the first
    stage, own, batch = begun(make_stage, feature_weight=0.0)
    losses = []
    for _ in range(4):
        losses.append(total(stage, own, batch).item())
        stage.batches_seen += 1
    assert len({*losses}) == 3 and losses[3] == losses[0]


def test_features_cost_nothing_where_nobody_asks(make_stage, monkeypatch):
    # red if texts are read at a weight of 0
    stage, own, batch = begun(make_stage, feature_weight=0.0)
    monkeypatch.setattr(stage.encoder, "embed", lambda texts: pytest.fail("texts are read"))
    assert total(stage, own, batch) > 0


def test_data_without_texts_will_do(make_stage):
    # red if an empty text is read
    stage, own, batch = begun(make_stage, data=Nothing(batch_size=2, seed=1))
    assert all(len(texts) == 1 for one in own.memory for texts in one.texts)
    assert total(stage, own, batch) > 0


def test_a_run_makes_its_memory_when_it_begins(make_stage):
    # red if nobody calls `begin`
    stage = make_stage(EncoderRL, auxiliaries=[replay()])
    trainer = small.fit(stage, 2)
    assert len(stage.auxiliaries[0].memory) == 3 and trainer.callback_metrics["train/replay"] > 0


class Finite(L.LightningDataModule):
    def __init__(self, batches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return self.batches


def test_what_cannot_be_remembered(make_stage, monkeypatch):
    # red without any of the looks at the data
    batches = [batch for batch, _ in zip(ScenesData(batch_size=2).train_dataloader(), range(3), strict=False)]
    stage = make_stage(EncoderRL)
    with pytest.raises(ValueError, match="to remember 3 batches, its data has 2: lower batches"):
        replay(data=Finite(batches[:2])).begin(stage)
    cached = [replace(batch, images=torch.zeros(2, 3, 0, 0)) for batch in batches]
    with pytest.raises(ValueError, match="a cache has none: give its data with pictures"):
        replay(data=Finite(cached)).begin(stage)
    monkeypatch.setattr("uae_lightning.stages.memory_replay.ranks", lambda: 4)
    with pytest.raises(ValueError, match="2 pictures among 4 devices"):
        replay(data=Finite(batches)).begin(stage)


def test_options_that_replay_nothing(make_stage):
    # red if `check` is not asked, or not its base's
    with pytest.raises(ValueError, match="Replay trains encoder, DecoderRL trains decoder alone"):
        make_stage(DecoderRL, auxiliaries=[replay()])
    with pytest.raises(ValueError, match="do not move with condition_on: frozen: set feature_weight"):
        make_stage(EncoderRL, auxiliaries=[replay()], condition_on="frozen")
    make_stage(EncoderRL, auxiliaries=[replay(feature_weight=0.0)], condition_on="frozen")
