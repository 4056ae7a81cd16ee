"""Captions word by word, drawings step by step: in the end what the auto-encoder gives when nobody watches."""

import threading

import pytest
import torch

from uae_lightning.app.drawing import Settings, captioned, drawn, final, sampled, streamed
from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError


@pytest.fixture
def model(make_encoder, make_projector, make_decoder):
    parts = make_encoder(), make_projector(), make_decoder()
    return AutoEncoder(*parts, captioning=Captioning(1.0, 12), sampling=Sampling(4, 1.5)).eval()


def test_a_caption_grows_and_ends_as_it_is_written_unwatched(model, images):
    # red if `dictate` leaves the seed out, `heard` gets tokens behind an end, or nothing before the end
    state = torch.get_rng_state()
    said = list(captioned(model, images[1], 5))
    whole = model.write(images[1:2], 1, 5).texts[0]
    assert said[-1] == whole and len(whole.split()) > 3
    assert all(whole.startswith(text) for text in said) and said == sorted(said, key=len)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_word_is_heard(model, images):
    # red with `heard` called once at the end of sample_tokens
    heard = []
    captions = model.encoder.dictate(images[:2], heard.append, temperature=1.0, max_new_tokens=6, seed=0)
    assert len(heard) == captions.tokens.shape[1] and heard[-1] == captions.texts and heard[0] != heard[-1]


def test_a_drawing_ends_as_it_is_drawn_unwatched(model):
    # red with `before + ...` in FlowDecoder.draw_in_steps, or the guidance or the seed left out
    steps = list(drawn(model, "a red cat", 3))
    assert len(steps) == 4 and torch.equal(steps[-1], model.generate(["a red cat"], 3)[0])
    assert torch.equal(final(model, "a red cat", 3), steps[-1])


def test_each_step_is_what_the_velocity_points_at(model):
    # red if the noisy latents themselves are shown
    conditioning, noise = model.read(["a red cat"]), model.noise(1, 3)
    first = next(model.decoder.draw_in_steps(conditioning, noise, Sampling(4), None))
    with torch.no_grad():
        wanted = noise - model.decoder.velocity(noise, torch.ones(1), conditioning)  # at sigma 1
    torch.testing.assert_close(first, wanted, atol=1e-4, rtol=1e-4)


def test_settings_of_one_user_are_not_those_of_another(model):
    # red with `view = model` in `sampled`
    fast = sampled(model, Settings(steps=1, guidance=1.0))
    assert (fast.sampling.steps, fast.sampling.guidance) == (1, 1.0) and model.sampling == Sampling(4, 1.5)
    assert fast.decoder is model.decoder and sampled(model, Settings()).sampling == model.sampling


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 10**6}, {"guidance": float("nan")}, {"seed": -1}])
def test_numbers_out_of_bounds_are_refused(wrong):
    # red without `__post_init__`, or with `value < least` in place of `not least <= value`
    with pytest.raises(UsageError, match="must be a number from"):
        Settings(**wrong)


def test_errors_of_the_thread_come_out_and_who_leaves_ends_it():
    # red if `run` lets errors go, or without `left.set()`
    def fails(tell):
        tell("one")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(streamed(fails, str))
    ended = threading.Event()

    def endless(tell):
        try:
            while True:
                tell("word")
        finally:
            ended.set()

    listening = streamed(endless, str)
    assert next(listening) == "word"
    listening.close()
    assert ended.wait(10)
