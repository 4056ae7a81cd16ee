"""All three stages with small models: what moves, what must not, what is computed once, and what is refused."""

from __future__ import annotations

import pytest
import small_stages as small
import torch
from small_stages import DECODER, ENCODER, PROJECTOR, SMALL, fit, reward, snapshot
from staged import staged
from torch import Tensor

from uae_lightning.autoencoder import Captioning
from uae_lightning.interfaces import Decoder
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_pretrain import DecoderPretrain, weighted_mean
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Learn, Sampling

make_stage = small.make_stage


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


def test_the_negative_prompt_is_read_once_for_all(make_stage):
    # red if `repeat` goes, or the prompt is read once per picture
    stage, read = make_stage(DecoderRL, negative_prompt="red cat", sampling=Sampling(3, guidance=2.0)), []
    embed = stage.encoder.embed
    stage.encoder.embed = lambda texts: read.append(texts) or embed(texts)
    unconditional = stage.autoencoder.unconditional(3)
    assert read == [["red cat"]]
    torch.testing.assert_close(unconditional.states, stage.autoencoder.read(["red cat"] * 3).states)


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
    monkeypatch.setattr("uae_lightning.interfaces.decoder.ROWS_TOGETHER", 4)
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


def test_noise_free_window_gives_the_pictures_of_the_ode(make_stage):
    # red if the steps outside the window are stochastic
    stage = make_stage(DecoderRL)
    stage.policy.noise_level = 0.0  # refused as an option: nothing would be trained
    batch = next(iter(ScenesData(batch_size=2).train_dataloader()))
    rollout = stage.rollout(batch)
    ode = stage.autoencoder.draw(rollout.acts[0].conditioning, rollout.acts[0].trajectory.before[0])
    torch.testing.assert_close(rollout.reward_input.reconstructions, ode, atol=1e-4, rtol=1e-4)


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


def test_weights_count_by_pixel_and_even_weights_change_nothing():
    # red if adaptive_max_pool2d becomes adaptive_avg_pool2d, or weights.sum() becomes weights.numel()
    error = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(weighted_mean(error, torch.full((2, 1, 8, 8), 3.0)), error.mean())
    weights = torch.ones(2, 1, 8, 8)
    weights[0, 0, 0, 0] = 4.0  # one pixel of the first latent
    expected = (error.sum() + 3 * error[0, 0, 0, 0]) / (error.numel() + 3)
    torch.testing.assert_close(weighted_mean(error, weights), expected)
