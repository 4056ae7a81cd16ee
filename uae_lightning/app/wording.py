"""Captions edited by hand: what a changed word changes in the picture, and which words the decoder listens to.

Two ways to ask the latter: leave a word out, which the words behind it are then read without, or the gradient of the
picture at the states of that word, which the words behind it have read as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from uae_lightning.algorithms.sensitivity import sensitivity
from uae_lightning.algorithms.truncated_backprop import unroll
from uae_lightning.app.drawing import Settings, checked_text, final, read, sampled
from uae_lightning.app.round_trip import difference
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.data.images import as_picture
from uae_lightning.interfaces import FlowDecoder
from uae_lightning.types import Conditioning
from uae_lightning.usage import UsageError

UNITS: dict[str, str] = {"words": r"\S+", "sentences": r"[^.!?;]*[^.!?;\s][^.!?;]*[.!?;]*"}
MOST_PIECES = 128
DIRECTIONS = 8  # among pictures: each is a backward pass through all steps
LEFT_OUT, GRADIENT = "left out, one at a time", "the gradient of the picture"
WAYS = (LEFT_OUT, GRADIENT)


@dataclass(frozen=True)
class Redrawn:
    """The picture of a caption and that of its edited form, from the same noise."""

    before: Image.Image
    after: Image.Image
    change: float  # mean absolute difference of pixels, in [0, 1]


@dataclass(frozen=True)
class Piece:
    """A word or sentence of the caption; what stands between them belongs to none."""

    start: int
    end: int
    without: Image.Image | None = None  # the picture when it is left out
    change: float = 0.0  # as of `Redrawn`, or its share of the gradient's norm


@dataclass(frozen=True)
class Listening:
    text: str
    picture: Image.Image
    pieces: tuple[Piece, ...]
    of: int  # pieces there will be
    way: str = LEFT_OUT


def redraw(model: AutoEncoder, before: str, after: str, settings: Settings) -> Redrawn:
    model = sampled(model, settings)
    pictures = [as_picture(final(model, checked_text(text), settings.seed)) for text in (before, after)]
    return Redrawn(*pictures, difference(*pictures))


def listen(model: AutoEncoder, text: str, settings: Settings, unit: str = "words") -> Iterator[Listening]:
    """Leaves each piece out in turn and draws the rest from the same noise: how much does the picture change?"""
    text, model = checked_text(text), sampled(model, settings)
    pieces = pieces_of(text, unit)
    picture = as_picture(final(model, text, settings.seed))
    now = Listening(text, picture, (), len(pieces))
    yield now
    for piece in pieces:
        without = as_picture(final(model, left_out(text, piece), settings.seed))
        heard = replace(piece, without=without, change=difference(picture, without))
        now = replace(now, pieces=(*now.pieces, heard))
        yield now


def listen_by_gradient(model: AutoEncoder, text: str, settings: Settings, unit: str = "words") -> Iterator[Listening]:
    """How much the picture would change with the states of each piece: the norm of its gradient there, as a share of
    that at all states, those around the text included. Of pieces the squares add up."""
    text, model = checked_text(text), sampled(model, settings)
    pieces = pieces_of(text, unit)
    by_flow(model)
    now = Listening(text, as_picture(final(model, text, settings.seed)), (), len(pieces), GRADIENT)
    yield now
    squares = heard(model, read(model, text), settings.seed).square()
    spans, whole = model.reader.spans(text), squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    shares = [(squares[standing_at(piece, spans)].sum() / whole).sqrt().item() for piece in pieces]
    yield replace(now, pieces=tuple(replace(one, change=share) for one, share in zip(pieces, shares, strict=True)))


def heard(model: AutoEncoder, conditioning: Conditioning, seed: int) -> Tensor:
    """Size of the picture's gradient at each of the states [1, L, D] it is drawn from: [L]. Predicted visual features
    beside them count as given."""
    decoder, sampling, noise = by_flow(model), model.sampling, model.noise(1, seed)
    with torch.no_grad():
        unconditional = model.unconditional(1)

    def draw(states: Tensor) -> Tensor:
        given = replace(conditioning, states=states)
        latents = unroll(
            lambda x, sigma, after: decoder.ode_step(x, sigma, after, given, unconditional, sampling.guidance),
            noise, decoder.schedule(sampling.steps), sampling.steps,
        )  # fmt: skip
        return decoder.decode_latents(latents)

    return sensitivity(draw, conditioning.states, DIRECTIONS, torch.Generator().manual_seed(seed))


def by_flow(model: AutoEncoder) -> FlowDecoder:
    if not isinstance(model.decoder, FlowDecoder):
        raise UsageError(
            f"the gradient goes back through the steps of flow matching, which {type(model.decoder).__name__} does not "
            f"draw by: choose {LEFT_OUT!r}"
        )
    return model.decoder


def standing_at(piece: Piece, spans: list[tuple[int, int]]) -> list[int]:
    """Which states stand at letters of the piece."""
    return [place for place, (start, end) in enumerate(spans) if start < piece.end and piece.start < end]


def pieces_of(text: str, unit: str) -> list[Piece]:
    """Where the words or sentences stand; marks alone are none."""
    if unit not in UNITS:
        raise UsageError(f"choose one of {', '.join(UNITS)}")
    found = [Piece(*match.span()) for match in re.finditer(UNITS[unit], text) if re.search(r"\w", match[0])]
    if len(found) > MOST_PIECES:
        raise UsageError(
            f"the caption has {len(found)} {unit}, {MOST_PIECES} are the limit: choose sentences, or cut it"
        )
    if len(found) < 2:
        raise UsageError(f"the caption needs two {unit} at least, of which one can be left out")
    return found


def left_out(text: str, piece: Piece) -> str:
    """The text without the piece and without the gap it leaves."""
    return re.sub(r"\s{2,}", " ", text[: piece.start] + text[piece.end :]).strip()
