"""Masked autoregression: the order of tokens, what is drawn from what, and that it learns."""

from __future__ import annotations

import pytest
import torch
from conftest import LATENT_SHAPE
from diffusers import AutoencoderKL

from uae_lightning.algorithms import flow
from uae_lightning.models.codecs import LinearCodec
from uae_lightning.models.mar import MARDecoder
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Conditioning, Sampling

PLACES = LATENT_SHAPE[1] ** 2


@pytest.fixture
def make_mar(parts_folder):
    def make(path=None, **options) -> MARDecoder:
        torch.manual_seed(0)
        codec = LinearCodec(str(parts_folder / "decoder"), "vae")
        sizes = {"conditioning_size": 24, "width": 32, "encoder_layers": 2, "decoder_layers": 2, "head_width": 32}
        return MARDecoder(path, IMAGE_SIZE, codec, **(sizes | {"head_layers": 2} | options))

    return make


def text(*lengths: int, seed: int = 1) -> Conditioning:
    states = torch.randn(len(lengths), max(lengths), 24, generator=torch.Generator().manual_seed(seed))
    return Conditioning(states, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def noise_of(n: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(n, *LATENT_SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_one_go_is_plain_masked_prediction(make_mar):
    # red if a place is drawn from anything but the text when all are drawn at once, or out of its place
    decoder, noise, read = make_mar(head_steps=1), noise_of(3), text(5, 2, 4)
    tokens = decoder.tokens_of(noise)
    nothing = torch.zeros(3, PLACES, dtype=torch.bool)
    known = decoder.transformer.context(torch.zeros_like(tokens), nothing, read.states, read.mask)
    plain = tokens - decoder.transformer.token_velocity(tokens, torch.ones(3), known)
    drawn = decoder.draw(read, noise, Sampling(1))
    torch.testing.assert_close(drawn, decoder.latents_of(plain), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(drawn, decoder.draw(read, noise, Sampling(4)))


@torch.no_grad()
def test_a_token_is_drawn_from_those_before_it_and_stays(make_mar):
    # red if a token is drawn twice, or those of one go look at each other
    decoder, noise, read = make_mar(), noise_of(2), text(3, 3)
    steps = list(decoder.draw_in_steps(read, noise, Sampling(5)))
    there = [step.ne(0).all(1).flatten(1) for step in steps]
    assert [int(one[0].sum()) for one in there] == [PLACES - left for left in decoder.left_hidden(5)[1:]]
    for before, after, mask in zip(steps, steps[1:], there, strict=False):
        assert torch.equal(before.flatten(2)[mask[:, None].expand_as(before.flatten(2))],
                           after.flatten(2)[mask[:, None].expand_as(after.flatten(2))])  # fmt: skip
    order, last = decoder.order(noise), noise.clone()
    last.flatten(2)[0, 1:, order[0, -1]] += 1  # the noise of the token that comes last, its place in the order kept
    changed = list(decoder.draw_in_steps(read, last, Sampling(5)))
    assert all(torch.equal(a, b) for a, b in zip(steps[:-1], changed[:-1], strict=True))
    assert not torch.equal(steps[-1], changed[-1])


@torch.no_grad()
def test_a_picture_is_a_function_of_its_noise(make_mar):
    # red with a random order that is not the noise's, or padding that is looked at
    decoder, noise = make_mar(), noise_of(3)
    read, alone = text(5, 2, 4), text(5, 2, 4)[torch.tensor([1])]
    torch.manual_seed(1)
    drawn = decoder.draw(read, noise, Sampling(4, 2.0))
    torch.manual_seed(2)
    torch.testing.assert_close(decoder.draw(alone, noise[1:2], Sampling(4, 2.0)), drawn[1:2], atol=1e-5, rtol=1e-4)
    assert len({tuple(order.tolist()) for order in decoder.order(noise)}) == 3


@torch.no_grad()
def test_guidance_moves_away_from_the_empty_text(make_mar):
    # red if the guidance branch reads the text, or a dropped caption is not the decoder's own null input
    decoder, noise, read = make_mar(), noise_of(2), text(3, 4)
    dropped = read.drop(torch.tensor([True, True]))
    for sampling in (Sampling(3), Sampling(3, 0.0)):
        drawn = decoder.draw(dropped if sampling.guidance else read, noise, sampling)
        torch.testing.assert_close(drawn, decoder.draw(dropped, noise, Sampling(3)), atol=1e-5, rtol=1e-4)
    own = decoder.draw(read, noise, Sampling(3, 3.0))
    torch.testing.assert_close(own, decoder.draw(read, noise, Sampling(3, 3.0), dropped), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("steps", "goes"), [(1, 1), (5, 5), (PLACES, PLACES), (1000, PLACES)])
def test_every_go_draws_something(make_mar, steps, goes):
    # red without the bound by which one token less is hidden each time
    decoder = make_mar()
    left = decoder.left_hidden(steps)
    assert left[0] == PLACES and left[-1] == 0 and left == sorted(set(left), reverse=True)
    assert decoder.evaluations(Sampling(steps, 2.0)) == 2 * (len(left) - 1) <= 2 * goes


@torch.no_grad()
def test_drawing_again_keeps_what_the_level_leaves(make_mar):
    # red if all tokens are drawn again, or none
    decoder, latents, read = make_mar(), noise_of(2, seed=3), text(3, 4)
    again = decoder.redraw(latents, 0.25, read, noise_of(2), Sampling(4))
    kept = (again == latents).all(1).flatten(1).sum(1)
    assert kept.tolist() == [PLACES - -(-PLACES // 4)] * 2
    whole = decoder.redraw(latents, 1.0, read, noise_of(2), Sampling(4))
    assert torch.equal(whole, decoder.draw(read, noise_of(2), Sampling(4)))


def test_the_loss_is_that_of_hidden_tokens_that_see_no_hidden_one(make_mar):
    # red if a hidden token is looked at, or errors of others count
    decoder, latents, noise, read = make_mar(), noise_of(3, seed=3), noise_of(3), text(3, 4, 2)
    sigma, hidden = torch.tensor([0.2, 0.5, 0.9]), decoder.hidden_in_training(noise)
    error = decoder.loss(latents, read, noise, sigma).flatten(1)
    assert error.shape == (3, PLACES) and torch.equal(error > 0, hidden)
    tokens = decoder.tokens_of(latents)
    x, target = flow.interpolate(tokens, decoder.tokens_of(noise), sigma)
    known = decoder.context(tokens.masked_fill(hidden[..., None], 7.0), ~hidden, read)
    wrong = (decoder.transformer.token_velocity(x, sigma, known) - target).square().mean(2)
    mean = torch.stack([row[mask].mean() for row, mask in zip(wrong, hidden, strict=True)])
    torch.testing.assert_close(error.mean(1), mean, atol=1e-5, rtol=1e-4)


def test_shares_that_are_hidden_are_those_of_the_paper(make_mar):
    # red with another range or deviation, or where the share or the order tells what the noise is
    decoder, noise = make_mar(), noise_of(4000)
    hidden = decoder.hidden_in_training(noise)
    share = hidden.float().mean(1)
    assert share.min() >= 0.7 and share.max() == 1
    normal = torch.distributions.Normal(1.0, 0.25)
    draws = normal.sample((200_000,))
    expected = draws[(draws > 0.7) & (draws < 1)].mean()
    assert abs(share.mean() - expected - 0.5 / PLACES) < 0.004  # counts are rounded up
    assert abs(noise[:, 0].flatten(1)[hidden].mean()) < 0.01 and abs(noise[:, -1].flatten(1)[hidden].mean()) < 0.01
    first = noise[:, 0].flatten(1).gather(1, decoder.order(noise)[:, :4])
    assert abs(first.mean()) < 0.03 and abs(first.std() - 1) < 0.03


def test_it_learns_a_picture_for_each_text(make_mar):
    # red if texts do not reach tokens, the target has another sign, or places are mixed up
    decoder, read = make_mar(width=64, head_width=64), text(3, 3, 3, 3)
    latents = noise_of(4, seed=5)[..., :1, :1] + noise_of(1, seed=6)  # of a text, and of a place
    decoder.adapt("all")
    assert not any(parameter.requires_grad for parameter in decoder.codec.parameters())
    optimizer = torch.optim.AdamW(decoder.transformer.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        noise = torch.randn(latents.shape, generator=generator)
        decoder.loss(latents, read, noise, flow.sample_sigma(4, generator=generator)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        drawn = decoder.draw(read, noise_of(4), Sampling(4))
    error = (drawn[:, None] - latents[None]).square().mean((2, 3, 4))
    assert error.argmin(1).tolist() == [0, 1, 2, 3] and error.diagonal().mean() < 1.0, error


def test_what_is_saved_draws_the_same(make_mar, tmp_path):
    # red if a size or a weight is not written, or `path` is not read
    decoder, noise, read = make_mar(patch_size=2), noise_of(2), text(3, 4)
    decoder.save(tmp_path)
    again = MARDecoder(str(tmp_path), IMAGE_SIZE, patch_size=2)
    assert torch.equal(again.draw(read, noise, Sampling(3)), decoder.draw(read, noise, Sampling(3)))
    with pytest.raises(ValueError, match="do not fit: .*set resolution, patch_size and codec"):
        MARDecoder(str(tmp_path), IMAGE_SIZE)
    with pytest.raises(ValueError, match=r"give model.autoencoder.decoder.codec"):
        MARDecoder()
    AutoencoderKL().save_config(tmp_path / "transformer")
    with pytest.raises(ValueError, match="no MARTransformer"):
        MARDecoder(str(tmp_path), IMAGE_SIZE, patch_size=2)
