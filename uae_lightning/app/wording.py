"""Captions edited by hand: what a changed word changes in the picture, and which words the decoder listens to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from uae_lightning.app.drawing import Settings, checked_text, final, sampled
from uae_lightning.app.pictures import as_picture
from uae_lightning.app.round_trip import difference
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.usage import UsageError

Unit = Literal["words", "sentences"]
UNITS: dict[str, str] = {"words": r"\S+", "sentences": r"[^.!?;]*[^.!?;\s][^.!?;]*[.!?;]*"}
MOST_PIECES = 128


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
    change: float = 0.0  # as of `Redrawn`


@dataclass(frozen=True)
class Listening:
    text: str
    picture: Image.Image
    pieces: tuple[Piece, ...]
    of: int  # pieces there will be


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
