"""Reconstruct and Compare: picture -> caption -> picture, now and along a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from PIL import Image

from uae_lightning.app.drawing import Settings, captioned, drawn, sampled, scores_of
from uae_lightning.app.errors import in_words
from uae_lightning.app.models import Models
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.data.images import as_picture, as_tensor
from uae_lightning.interfaces import Reward


@dataclass(frozen=True)
class RoundTrip:
    """How far it has come."""

    title: str
    original: Image.Image  # as the models see it
    caption: str = ""
    steps: tuple[Image.Image, ...] = ()  # what the decoder took the picture for, after each
    of: int = 0  # steps there will be
    scores: dict[str, float] = field(default_factory=dict)  # judge -> reward, once it is drawn
    note: str = ""  # why there are no scores

    @property
    def drawing(self) -> Image.Image | None:
        return self.steps[-1] if self.steps else None

    @property
    def done(self) -> bool:
        return self.of > 0 and len(self.steps) == self.of


def reconstruct(
    model: AutoEncoder, judges: list[Reward], picture: Image.Image, settings: Settings, title: str = ""
) -> Iterator[RoundTrip]:
    """A picture through the round trip: word by word, step by step, then its rewards. Of the run's own settings it is
    what `AutoEncoder.reconstruct` gives."""
    model = sampled(model, settings)
    original = as_tensor(picture, model.image_size).to(model.device)
    now = RoundTrip(title, as_picture(original), of=model.sampling.steps)
    yield now
    for caption in captioned(model, original, settings.seed):
        now = replace(now, caption=caption)
        yield now
    image = original
    for image in drawn(model, now.caption, settings.seed):
        now = replace(now, steps=(*now.steps, as_picture(image)))
        if not now.done:
            yield now
    now = replace(now, of=len(now.steps))  # a decoder without steps shows one
    yield replace(now, scores=scores_of(judges, original, image, now.caption))


def judges_of(models: Models, name: str) -> tuple[list[Reward], str]:
    """The judges of a run, or none and why: one that this machine does not have spoils no drawing."""
    try:
        return models.judges(name), ""
    except (ValueError, OSError, ImportError) as error:
        return [], f"no rewards: {in_words(error)}"


def along_the_run(
    models: Models, name: str, picture: Image.Image, settings: Settings
) -> Iterator[tuple[RoundTrip, ...]]:
    """The same picture at the start of a run and after each stage; a moment more each time, from the same noise."""
    found: tuple[RoundTrip, ...] = ()
    judges, note = judges_of(models, name)
    for moment in models.moments(name):
        *_, last = reconstruct(models.at(moment), judges, picture, settings, moment.title)
        found = (*found, replace(last, note=note))
        yield found


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in [0, 1]."""
    a, b = (as_tensor(picture, picture.width) for picture in (first, second))
    return torch.mean((a - b).abs()).item()
