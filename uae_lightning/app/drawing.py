"""How a picture comes to be, to be watched: captions word by word, drawings step by step."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Reward
from uae_lightning.types import Captions, Conditioning, RewardInput, Sampling
from uae_lightning.usage import UsageError

T, R = TypeVar("T"), TypeVar("R")
MOST_STEPS, MOST_GUIDANCE, MOST_CANDIDATES, MOST_LETTERS = 100, 20.0, 16, 4000
alone = threading.Lock()  # encoders draw from the process's random state: one at a time, whoever asks


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn for one user; None is what the run was trained with.

    Raises:
        UsageError: a number is out of bounds.
    """

    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check("steps", self.steps, 1, MOST_STEPS)
        check("guidance", self.guidance, 0, MOST_GUIDANCE)
        check("the seed", self.seed, 0, 2**32 - 1)


def check(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:  # NaN is refused, too
        raise UsageError(f"{name} must be a number from {least} to {most}, got {value}")


def checked_text(text: str | None) -> str:
    """Without blanks at its ends; a UsageError where nothing is left, or too much."""
    text = (text or "").strip()
    if not text:
        raise UsageError('there is no text yet: write what is to be drawn, such as "a red cat at the center"')
    if len(text) > MOST_LETTERS:
        raise UsageError(f"the text has {len(text)} letters, {MOST_LETTERS} are the limit: shorten it")
    return text


def sampled(model: AutoEncoder, settings: Settings) -> AutoEncoder:
    """The same parts, drawing by these settings: users share the weights and nothing else."""
    view = copy.copy(model)
    steps = model.sampling.steps if settings.steps is None else settings.steps
    view.sampling = Sampling(steps, model.sampling.guidance if settings.guidance is None else settings.guidance)
    return view


def captioned(model: AutoEncoder, image: Tensor, seed: int) -> Iterator[str]:
    """The caption of a picture [3, H, W] while it is written; the last is that of `AutoEncoder.write`."""

    def dictate(heard: Callable[[list[str]], None]) -> Captions:
        with alone, torch.no_grad():
            return model.reader.dictate(image[None], heard, seed=seed, **vars(model.captioning))

    for texts in streamed(dictate, lambda captions: captions.texts):
        yield texts[0]


@torch.no_grad()
def read(model: AutoEncoder, text: str) -> Conditioning:
    with alone:
        return model.read([text])


@torch.no_grad()
def drawn(model: AutoEncoder, text: str, seed: int) -> Iterator[Tensor]:
    """What the decoder takes the picture [3, H, W] for after each step; the last is that of `AutoEncoder.generate`."""
    conditioning, noise = read(model, text), model.noise(1, seed)
    for latents in model.decoder.draw_in_steps(conditioning, noise, model.sampling, model.unconditional(1)):
        yield model.decoder.decode_latents(latents)[0]


def final(model: AutoEncoder, text: str, seed: int) -> Tensor:
    """The picture [3, H, W] alone."""
    *_, picture = drawn(model, text, seed)
    return picture


@torch.no_grad()
def scores_of(judges: list[Reward], original: Tensor, picture: Tensor, caption: str) -> dict[str, float]:
    """Title of each judge -> what it says of a picture [3, H, W] and its original."""
    inputs = RewardInput(original[None], picture[None], [caption])
    return {judge.title(): judge(inputs).total.item() for judge in judges}


def streamed(work: Callable[[Callable[[T], None]], R], last: Callable[[R], T]) -> Iterator[T]:
    """What `work` tells while it works in a thread of its own, the newest where several wait, then `last` of its
    result. Its errors are raised here; where nobody listens any more it ends at its next word."""
    told: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    ended: list[R | BaseException] = []
    left = threading.Event()

    def tell(value: T) -> None:
        if left.is_set():
            raise InterruptedError("nobody listens")
        told.put(value)

    def run() -> None:
        try:
            ended.append(work(tell))
        except BaseException as error:  # noqa: B036  it is raised where somebody can see it
            ended.append(error)
        told.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (value := newest(told)) is not None:
            yield value
    finally:
        left.set()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    yield last(ended[0])


def newest(told: queue.SimpleQueue[T | None]) -> T | None:
    """The last of those that wait, or of the next; None is the end."""
    value = told.get()
    while value is not None and not told.empty():
        following = told.get()
        if following is None:
            told.put(None)
            break
        value = following
    return value
