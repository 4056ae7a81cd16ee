"""The learned hash."""

import torch

from benchmarks import dual_stream as learned
from benchmarks.dual_stream import DualStream, dual_stream, neighbors
from uae_lightning.prepare.semantic_hash import BITS, itq

PLACES, WIDTH = 4, 30


def embeddings(count: int = 300) -> torch.Tensor:
    """Pictures of 20 kinds, whose places differ in noise alone."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(20, WIDTH * PLACES, generator=generator)
    kind = torch.arange(count) % 20
    found = kinds[kind] + 0.7 * torch.randn(count, WIDTH * PLACES, generator=generator)
    return found - found.mean(0)


def agreement(projection: torch.Tensor, centered: torch.Tensor) -> tuple[float, float]:
    """Share of bits that two pictures of one kind share, and two of other kinds."""
    signs = (centered @ projection).sign()
    return ((signs[:-20] == signs[20:]).float().mean().item(), (signs[:-1] == signs[1:]).float().mean().item())


def test_codes_of_a_kind_come_closer_and_those_of_others_do_not():
    # red if pairs are drawn at random, or pushed together
    centered = embeddings()
    before, after = (agreement(of, centered) for of in (itq(centered), dual_stream(centered, PLACES)))
    assert after[0] > before[0] + 0.05 and abs(after[1] - 0.5) < 0.1


def test_the_code_need_not_carry_what_a_place_knows(monkeypatch):
    # red if the place's own stream is left out of the reconstruction
    centered = embeddings(40)
    model = DualStream(torch.randn(WIDTH * PLACES, BITS), WIDTH)
    _, error = model(centered, PLACES)
    error.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    features = centered.unflatten(1, (WIDTH, PLACES))
    codes = model.codes(centered)
    by_hand = [
        model.back(codes + model.place(features[:, :, place])) - features[:, :, place] for place in range(PLACES)
    ]
    torch.testing.assert_close(torch.stack(by_hand).square().mean(), error)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}


def test_neighbors_are_others():
    # red if a picture is its own neighbor: codes would learn nothing
    near = neighbors(embeddings(60))
    assert near.shape == (60, learned.NEIGHBORS) and not (near == torch.arange(60)[:, None]).any()
    assert ((near % 20) == (torch.arange(60) % 20)[:, None]).float().mean() > 0.3


def test_it_is_the_same_for_the_same_seed():
    # red if the process's random state is used, or left changed
    centered = embeddings(200)
    state = torch.get_rng_state()
    first = dual_stream(centered, PLACES)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, dual_stream(centered, PLACES))
