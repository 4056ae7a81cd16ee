"""All three stages with small models: what moves, what must not, and the arithmetic of the updates."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from staged import staged
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.advantages import group_advantages
from uae_lightning.autoencoder import Captioning
from uae_lightning.interfaces import Decoder
from uae_lightning.policies.captions import take
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.common import Stage
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_pretrain import DecoderPretrain, weighted_mean
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Learn, LoRA, RewardInput, RewardOutput, Sampling

SMALL = LoRA(rank=4, alpha=8)
ENCODER, PROJECTOR, DECODER = (f"autoencoder.{part}." for part in ("encoder", "projector", "decoder"))


def reward(inputs: RewardInput) -> RewardOutput:
    """Closeness of pixels, plus a little for the caption's length, so that captions matter to a random decoder."""
    total = 1 - (inputs.originals - inputs.reconstructions).abs().mean((1, 2, 3))
    total = total + 0.01 * torch.tensor([len(text.split()) for text in inputs.captions])
    return RewardOutput(total, {"test": total})


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(kind: type[Stage], **options) -> Stage:
        learn = {DecoderPretrain: Learn(projector="all", decoder="all"), EncoderRL: Learn(encoder=SMALL)}
        defaults = {
            "learn": learn.get(kind, Learn(decoder=SMALL)),
            "captioning": Captioning(1.0, 10),
            "sampling": Sampling(3),
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        }
        if kind is not DecoderPretrain:
            defaults |= {"group_size": 4, "micro_batch": 4}
        if kind is DecoderRL:
            defaults |= {"window": (0, 2), "clip": 1e-3}
        stage = staged(kind, make_encoder(), make_projector(), make_decoder(), **(defaults | options))
        stage.score = reward
        return stage

    return make


def fit(stage: Stage, steps: int = 2, callbacks: list[L.Callback] | None = None) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=callbacks,
    )
    trainer.fit(stage, datamodule=ScenesData(batch_size=2))
    return trainer


def snapshot(stage: Stage) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "moves", "stays"),
    [
        (DecoderPretrain, (PROJECTOR, f"{DECODER}transformer."), (ENCODER, f"{DECODER}codec.")),
        (EncoderRL, ("language_model", "lora_"), (PROJECTOR, DECODER, "visual")),
        (DecoderRL, (f"{DECODER}transformer.", "lora_"), (PROJECTOR, ENCODER)),
        (DecoderMatching, (f"{DECODER}transformer.", "lora_"), (PROJECTOR, ENCODER)),
    ],
)
def test_only_the_intended_parameters_move(make_stage, kind, moves, stays):
    # red if a `requires_grad_(False)` is removed from a stage or a model
    stage = make_stage(kind)
    before = snapshot(stage)
    fit(stage, 3)
    changed = {name for name, tensor in snapshot(stage).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not [name for name in changed if any(part in name for part in stays)]
    if kind is DecoderPretrain:
        assert all(any(name.startswith(part) for name in changed) for part in moves)
    else:
        assert all(all(part in name for part in moves) for name in changed)


class Painter(Decoder):
    def regression(self, latents, conditioning, noise, sigma) -> tuple[Tensor, Tensor]:
        return noise, noise

    def draw(self, conditioning, noise, sampling, unconditional=None) -> Tensor:
        return noise

    def save(self, folder) -> None: ...


def test_a_decoder_that_matches_no_flow_is_refused(make_stage):
    # red if `decoder` is taken from the auto-encoder as it is: a module has no attribute 'velocity'
    stage = make_stage(DecoderRL)
    stage.autoencoder.decoder = Painter()
    with pytest.raises(ValueError, match="Painter is no decoder by flow matching: give model.autoencoder.decoder"):
        stage.training_step(next(iter(ScenesData(batch_size=2).train_dataloader())), 0)


class Watch(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, stage, *_) -> None:
        self.rows.append(dict(stage.health))


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL])
def test_on_policy_the_ratio_is_exactly_one(make_stage, kind):
    # red if the rollout is replayed in other micro-batches, at another temperature, or with another guidance; captions
    # are sampled token by token and replayed at a time, which rounds differently
    watch = Watch()
    fit(make_stage(kind, kl_beta=0.01), 3, [watch])
    assert all(row["first_log_ratio"] <= (1e-4 if kind is EncoderRL else 0) for row in watch.rows)
    assert all(row["ratio_mean"] == pytest.approx(1.0, abs=1e-12) for row in watch.rows)


@pytest.mark.parametrize("kind", [EncoderRL, DecoderRL])
def test_a_second_update_of_one_rollout_leaves_ratio_one(make_stage, kind):
    # red if old log-probabilities are taken anew for every update
    watch = Watch()
    fit(make_stage(kind, updates_per_batch=2), 2, [watch])
    limit = 1e-3 if kind is EncoderRL else 1e-7  # of pictures log-probabilities are means over latents
    assert all(row["first_log_ratio"] <= 1e-4 and row["log_ratio_abs_max"] > limit for row in watch.rows)


def test_guidance_is_the_same_in_sampling_and_training(make_stage):
    # red if `replay` calls `decoder.velocity` directly
    watch = Watch()
    fit(make_stage(DecoderRL, sampling=Sampling(3, guidance=2.0)), 1, [watch])
    assert watch.rows[0]["first_log_ratio"] == 0.0


def test_the_negative_prompt_is_read_once_for_all(make_stage):
    # red if `repeat` goes, or the prompt is read once per picture
    stage, read = make_stage(DecoderRL, negative_prompt="red cat", sampling=Sampling(3, guidance=2.0)), []
    embed = stage.encoder.embed
    stage.encoder.embed = lambda texts: read.append(texts) or embed(texts)
    unconditional = stage.autoencoder.unconditional(3)
    assert read == [["red cat"]]
    torch.testing.assert_close(unconditional.states, stage.autoencoder.read(["red cat"] * 3).states)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(EncoderRL, {"normalization": name}) for name in ("grpo", "dr_grpo", "dapo")]
    + [
        (DecoderRL, {}),
        (DecoderRL, {"same_noise": True, "window": (1, 3)}),
        (DecoderMatching, {"objective": "nft"}),
        (DecoderMatching, {"objective": "awm"}),
    ],
)
def test_micro_batches_add_up_to_one_big_batch(make_stage, kind, options):
    # red if the loss of a micro-batch is divided by its own size
    stage = make_stage(kind, micro_batch=8, kl_beta=0.01, **options)
    rollout = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader())))
    advantages = torch.linspace(-1, 1, 8)
    one, several = (gradients_of_update(stage, rollout, advantages, size) for size in (8, 2))
    for name in one:
        torch.testing.assert_close(several[name], one[name], atol=1e-6, rtol=1e-3)


def gradients_of_update(stage: Stage, rollout, advantages: Tensor, micro_batch: int) -> dict[str, Tensor]:
    """One update without a Trainer and without its optimiser step."""
    stage.policy.micro_batch = micro_batch
    stage.log = lambda *_, **__: None
    stage.backward_of_micro_batch = lambda loss: loss.backward()
    stage.optimizer_step_after_clipping = lambda: 0.0
    stage.zero_grad()
    stage.update(rollout, advantages)
    gradients = {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0
    return gradients


def test_a_better_caption_becomes_more_likely(make_stage):
    # red if the sign of the surrogate is turned round
    stage = make_stage(EncoderRL, kl_beta=0.0)
    kept = {}

    def watched_update(rollout, advantages):
        EncoderRL.update(stage, rollout, advantages)
        with torch.no_grad():
            parts = [
                stage.policy.logprobs(stage.policy.pictures(rollout.acts[0].seen, rows), take(rollout.captions, rows))[
                    0
                ]
                for rows in stage.policy.micro_batches(len(advantages))
            ]
            after = torch.cat(parts)
        change = ((after - rollout.captions.logp) * rollout.captions.mask).sum(1)
        kept["covariance"] = (change * advantages).mean().item()

    stage.update = watched_update
    fit(stage, 1)
    assert kept["covariance"] > 0


def test_texts_of_like_length_are_drawn_together(make_stage, monkeypatch):
    # red if rows come back in the order of their lengths, or parts mix long and short texts
    stage, lengths = make_stage(DecoderPretrain), []
    texts = ["a red cat", "the background is sand . there is one object . it is a small blue owl ."] * 4
    conditioning = stage.autoencoder.read(texts)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(8, *stage.decoder.latent_shape, generator=generator) for _ in range(2))
    sigma = torch.linspace(0.1, 1, 8)
    wanted = stage.decoder.loss(latents, conditioning, noise, sigma)
    velocity = stage.decoder.velocity
    stage.decoder.velocity = lambda x, s, c: lengths.append(c.mask.sum(1).tolist()) or velocity(x, s, c)
    monkeypatch.setattr("uae_lightning.interfaces.ROWS_TOGETHER", 4)
    errors = stage.decoder.loss(latents, conditioning, noise, sigma)
    torch.testing.assert_close(errors, wanted, atol=1e-5, rtol=1e-5)
    assert [len(set(rows)) for rows in lengths] == [1, 1] and lengths[0] != lengths[1]


def test_encoder_rl_looks_at_a_picture_once(make_stage):
    # red if generation, scoring or the reference get `batch.images` instead of what was seen
    stage = make_stage(EncoderRL, kl_beta=0.1, micro_batch=2)
    looked, see = [], stage.encoder.see
    stage.encoder.see = lambda images: looked.append(len(images)) or see(images)
    fit(stage, 2)
    assert looked == [2, 2]


def test_adapters_of_two_parts_do_not_mix(make_encoder, make_decoder, make_projector):
    # red if `reference` of the encoder turns off the decoder's adapters too, or the other way round
    stage = staged(
        EncoderRL, make_encoder(), make_projector(), make_decoder(), learn=Learn(encoder=SMALL), group_size=2,
        micro_batch=2,
    )  # fmt: skip
    stage.decoder.adapt(SMALL)
    for name, parameter in stage.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    noise, sigma = torch.randn(1, *stage.decoder.latent_shape), torch.ones(1)

    def seen() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            states, _ = stage.encoder.embed(["a red cat"])
            return states, stage.decoder.velocity(noise, sigma, None)

    states, velocity = seen()
    with stage.encoder.reference():
        other_states, same_velocity = seen()
    with stage.decoder.reference():
        same_states, other_velocity = seen()
    assert torch.equal(same_velocity, velocity) and torch.equal(same_states, states)
    assert not torch.allclose(other_states, states, atol=1e-3)
    assert not torch.allclose(other_velocity, velocity, atol=1e-3)


def test_a_better_picture_becomes_more_likely(make_stage):
    # red if the advantage is subtracted
    stage = make_stage(DecoderRL, kl_beta=0.0)
    kept = {}

    def watched_update(rollout, advantages):
        DecoderRL.update(stage, rollout, advantages)
        with torch.no_grad():
            rows = torch.arange(len(advantages))
            after = stage.policy.replay(rollout.acts[0], rows, 0, None).mean_log_prob
        kept["covariance"] = ((after - rollout.acts[0].trajectory.logp[:, 0]) * advantages).mean().item()

    stage.update = watched_update
    fit(stage, 1)
    assert kept["covariance"] > 0


@pytest.mark.parametrize("objective", ["nft", "awm"])
def test_matching_comes_closer_to_better_pictures(make_stage, objective):
    # red if the sign of a loss is turned round, or `good` is 1 - good
    stage = make_stage(DecoderMatching, objective=objective, advantage_clip=1.0)
    kept = {}

    def errors(rollout):
        with torch.no_grad():
            x, target = flow.interpolate(
                rollout.acts[0].latents, rollout.acts[0].noises[:, 0], rollout.acts[0].sigmas[:, 0]
            )
            velocity = stage.decoder.velocity(x, rollout.acts[0].sigmas[:, 0], rollout.acts[0].conditioning)
        return (velocity - target).square().mean((1, 2, 3))

    def watched_update(rollout, advantages):
        before = errors(rollout)
        DecoderMatching.update(stage, rollout, advantages)
        kept["covariance"] = ((errors(rollout) - before) * advantages).mean().item()

    stage.update = watched_update
    fit(stage, 1)
    assert kept["covariance"] < 0


def test_a_second_update_of_matching_compares_with_the_first(make_stage):
    # red if `old` is taken anew for every update
    watch = Watch()
    fit(make_stage(DecoderMatching, objective="awm", updates_per_batch=2), 2, [watch])
    assert all(row["log_ratio_abs_max"] > 0 for row in watch.rows)


def test_what_a_group_says_twice_is_drawn_once(make_stage, images):
    # red if the group is left out of the key, or `index` is not used
    stage, drawn = make_stage(EncoderRL), []
    sample = stage.autoencoder.draw
    stage.autoencoder.draw = lambda conditioning, noise: drawn.append(len(noise)) or sample(conditioning, noise)
    noise = torch.randn(2, *stage.decoder.latent_shape, generator=torch.Generator().manual_seed(0))
    texts = ["red cat", "blue dog", "red cat", "red cat", "red cat", "blue dog", "blue dog", "sand"]
    pictures = stage.draw(texts, noise)
    one_by_one = [
        stage.draw([text] * 4, noise[group : group + 1])[0] for group in (0, 1) for text in texts[4 * group :][:4]
    ]
    torch.testing.assert_close(pictures, torch.stack(one_by_one), atol=1e-5, rtol=1e-5)
    assert drawn[0] == 5 and set(drawn[1:]) == {1}


def test_another_temperature_in_replay_shows(make_stage):
    # red if `captions.logp` is not compared: sampling and replay could drift apart unseen
    stage = make_stage(EncoderRL)
    caption, watch = stage.autoencoder.write, Watch()

    def hotter(*args):
        stage.captioning.temperature = 1.5
        captions = caption(*args)
        stage.captioning.temperature = 1.0
        return captions

    stage.autoencoder.write = hotter
    fit(stage, 1, [watch])
    assert watch.rows[0]["first_log_ratio"] > 0.1


def test_groups_of_captions_share_their_noise(make_stage, images):
    # red if noise is drawn for every caption: equal captions then get different pictures
    stage = make_stage(EncoderRL, captioning=Captioning(0.0, 4))  # greedy: all captions of a group are equal
    batch = ScenesData(batch_size=2)
    rollout = stage.rollout(next(iter(batch.train_dataloader())))
    pictures = rollout.reward_input.reconstructions.unflatten(0, (2, 4))
    torch.testing.assert_close(pictures[:, 0], pictures[:, 3], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pictures[0, 0], pictures[1, 0], atol=1e-2)


def test_groups_of_pictures_differ_unless_asked_otherwise(make_stage):
    # red if `same_noise` is ignored
    batch = next(iter(ScenesData(batch_size=2).train_dataloader()))
    for same in (False, True):
        stage = make_stage(DecoderRL, same_noise=same)
        start = stage.rollout(batch).acts[0].trajectory.before[0].unflatten(0, (2, 4))
        assert torch.equal(start[:, 0], start[:, 1]) is same


def test_what_a_group_shares_is_computed_once(make_stage):
    # red if `<=` becomes `<`, or `x[::copies]` becomes `x`: two pictures, groups of 4, three steps of which the first
    # is deterministic; the gradients are compared by test_micro_batches_add_up_to_one_big_batch, whose small
    # micro-batches share nothing
    stage, seen = make_stage(DecoderRL, same_noise=True, window=(1, 3), micro_batch=8, kl_beta=0.0), []
    velocity = stage.decoder.velocity
    stage.decoder.velocity = lambda x, *rest: seen.append(len(x)) or velocity(x, *rest)
    rollout = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader())))
    assert seen == [2, 2, 8]
    gradients_of_update(stage, rollout, torch.linspace(-1, 1, 8), 8)
    assert seen[3:] == [2, 8] and stage.health["first_log_ratio"] == 0


def test_noise_free_window_gives_the_pictures_of_the_ode(make_stage):
    # red if the steps outside the window are stochastic
    stage = make_stage(DecoderRL)
    stage.policy.noise_level = 0.0  # refused as an option: nothing would be trained
    batch = next(iter(ScenesData(batch_size=2).train_dataloader()))
    rollout = stage.rollout(batch)
    ode = stage.autoencoder.draw(rollout.acts[0].conditioning, rollout.acts[0].trajectory.before[0])
    torch.testing.assert_close(rollout.reward_input.reconstructions, ode, atol=1e-4, rtol=1e-4)


def test_equal_rewards_move_nothing(make_stage):
    # red if eps is added to the advantage instead of the deviation
    assert group_advantages(torch.ones(8), 4).abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EncoderRL, {"group_size": 1}, "group_size must be a whole number from 2"),
        (DecoderRL, {"group_size": 1}, "group_size must be a whole number from 2"),
        (DecoderRL, {"window": (2, 5)}, "window must lie within"),
    ],
)
def test_wrong_settings_are_refused_before_training(make_stage, kind, options, message):
    with pytest.raises(ValueError, match=message):
        fit(make_stage(kind, **options), 1)


def test_a_micro_batch_that_does_not_divide_is_refused(make_stage):
    with pytest.raises(ValueError, match="micro_batch"):
        fit(make_stage(EncoderRL, micro_batch=3), 1)


def test_parts_that_do_not_fit_are_refused(make_encoder, make_decoder):
    from uae_lightning.models.projector import MLPProjector

    with pytest.raises(ValueError, match="model.autoencoder.projector.output_size"):
        staged(DecoderPretrain, make_encoder(), MLPProjector(None, 192, 8, 25), make_decoder())
    with pytest.raises(ValueError, match="model.autoencoder.projector.input_size"):
        staged(DecoderPretrain, make_encoder(), MLPProjector(None, 191, 8, 24), make_decoder())


def test_nothing_to_train_is_refused(make_encoder, make_projector, make_decoder):
    # red without the check in configure_optimizers, or with an option in its words that there is not
    stage = staged(EncoderRL, make_encoder(), make_projector(), make_decoder(), group_size=2, micro_batch=2)
    stage.score = reward
    with pytest.raises(ValueError, match="nothing to train: set model.init_args.learn, such as {encoder: {rank"):
        fit(stage, 1)


@pytest.mark.parametrize(
    ("kind", "learn", "words"),
    [
        (EncoderRL, Learn(encoder="all"), "QwenVLEncoder learns by a LoRA alone: set model.init_args.learn.encoder"),
        (EncoderRL, Learn(encoder=SMALL, decoder=SMALL), "EncoderRL trains encoder: .*learn.decoder to null"),
        (DecoderPretrain, Learn(projector=SMALL), "MLPProjector has no adapters.*all or null"),
    ],
)
def test_what_a_stage_cannot_teach_is_refused(make_stage, kind, learn, words):
    # red without `others` in Stage._adapt, or with a part that adapts without a word
    with pytest.raises(ValueError, match=words):
        make_stage(kind, learn=learn)


def test_a_part_that_the_stage_does_not_name_stays_frozen(make_encoder, make_projector, make_decoder):
    # red if a stage adapts only what it names: the projector was built to be trained
    stage = staged(DecoderPretrain, make_encoder(), make_projector(), make_decoder(), learn=Learn(decoder=SMALL))
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(f"{DECODER}transformer.") and "lora_" in name for name in trained)


def test_empty_captions_are_counted_and_do_no_harm(make_stage):
    # red if empty captions are dropped without a word
    stage, watch = make_stage(EncoderRL), Watch()
    original = stage.encoder.generate

    def mostly_empty(images, **options):
        captions = original(images, **options)
        captions.tokens[1:, 0] = stage.encoder.ends[0]
        captions.mask[1:, 1:] = False
        return type(captions)([captions.texts[0]] + [""] * (len(captions.texts) - 1), captions.tokens, captions.mask)

    stage.encoder.generate = mostly_empty
    fit(stage, 1, [watch])
    assert watch.rows[0]["empty_captions"] == 7 / 8
    assert all(torch.isfinite(parameter).all() for parameter in stage.parameters())


def test_weights_count_by_pixel_and_even_weights_change_nothing():
    # red if adaptive_max_pool2d becomes adaptive_avg_pool2d, or weights.sum() becomes weights.numel()
    error = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(weighted_mean(error, torch.full((2, 1, 8, 8), 3.0)), error.mean())
    weights = torch.ones(2, 1, 8, 8)
    weights[0, 0, 0, 0] = 4.0  # one pixel of the first latent
    expected = (error.sum() + 3 * error[0, 0, 0, 0]) / (error.numel() + 3)
    torch.testing.assert_close(weighted_mean(error, weights), expected)
