"""RemoteReward: what rewards have in common that are asked over a network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import warnings
from abc import abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.data.images import as_picture
from uae_lightning.interfaces import Reward
from uae_lightning.paths import weightless
from uae_lightning.rewards.endpoint import Endpoint, NoAnswer, concurrently
from uae_lightning.types import RewardInput, RewardOutput

Values = tuple[float, ...]  # of one picture: the total, then the parts


@dataclass(frozen=True)
class Question:
    """One picture as it is sent: pictures are PNG in base64."""

    image: str
    caption: str
    original: str | None = None
    metadata: str | None = None  # JSON

    @property
    def digest(self) -> bytes:
        fields = [self.image, self.caption, self.original, self.metadata]
        return hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).digest()


class RemoteReward(Reward):
    """Base: distinct pictures, cut into requests, some of them under way at a time; what was judged once is remembered.

    Args:
        endpoint: that is asked.
        batch_size: pictures in a request.
        concurrency: requests under way at a time. `micro_batch` of callbacks.RewardCallback is how many pictures there
            are to share out: batch_size x concurrency and more.
        cache: judgments that are remembered by the content of picture and text; 0 remembers none.
        on_failure: where requests get no answer, "stop" ends the run with a checkpoint of the last whole batch;
            "skip_group" passes the groups over, as other rewards that are no number are. Validation always stops.
        sends_originals: originals go along, and the reward needs them.
        parts: names of figures beside the total.
    """

    name: str  # of the total among the parts

    def __init__(
        self,
        endpoint: Endpoint,
        batch_size: int,
        concurrency: int,
        cache: int,
        on_failure: Literal["stop", "skip_group"],
        sends_originals: bool = False,
        parts: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.endpoint, self.batch_size, self.concurrency, self.cache = endpoint, batch_size, concurrency, cache
        self.skips_failures, self.needs_originals, self.parts = on_failure == "skip_group", sends_originals, parts
        self.planned = weightless()  # nobody is asked
        self._known: OrderedDict[bytes, Values] = OrderedDict()
        self._failure = ""

    @abstractmethod
    def judge(self, questions: list[Question]) -> list[Values]:
        """Of at most `batch_size` pictures, 1 + the number of parts each; NaN where one could not be judged.

        Raises:
            NoAnswer: of none of them.
        """

    def failure(self) -> str:
        return self._failure

    @torch.no_grad()
    def forward(self, inputs: RewardInput) -> RewardOutput:
        device, count = inputs.reconstructions.device, len(inputs.captions)
        if self.planned:
            values = torch.zeros(count, 1 + len(self.parts), device=device)
        else:
            values = torch.tensor(self.values(self.questions(inputs)), dtype=torch.float32, device=device)
        total, *others = values.unbind(1)
        return RewardOutput(total, {self.name: total} | dict(zip(self.parts, others, strict=True)))

    def questions(self, inputs: RewardInput) -> list[Question]:
        images = [as_png(image) for image in inputs.reconstructions]
        originals: list[Any] = [None] * len(images)
        if self.needs_originals:
            originals = [as_png(image) for image in inputs.originals]
        rows = [None if row is None else json.dumps(row) for row in inputs.metadata or [None] * len(images)]
        return [Question(*one) for one in zip(images, inputs.captions, originals, rows, strict=True)]

    def values(self, questions: list[Question]) -> list[Values]:
        """Those of each question, some from memory; NaN where there was no answer."""
        digests = [question.digest for question in questions]
        asked = {digest: one for digest, one in zip(digests, questions, strict=True) if digest not in self._known}
        batches = [list(asked)[first : first + self.batch_size] for first in range(0, len(asked), self.batch_size)]
        found = {digest: self._known[digest] for digest in digests if digest in self._known}
        answers = concurrently(
            lambda batch: self.answer([asked[digest] for digest in batch]), batches, self.concurrency
        )
        for batch, values in zip(batches, answers, strict=True):
            found |= dict(zip(batch, values, strict=True))
        self.remember(found)
        if bad := sum(not all(map(math.isfinite, found[digest])) for digest in digests):
            warnings.warn(f"{type(self).__name__} could not judge {bad} pictures: {self._failure}", stacklevel=2)
        return [found[digest] for digest in digests]

    def answer(self, questions: list[Question]) -> list[Values]:
        nothing = (math.nan,) * (1 + len(self.parts))
        try:
            found = self.judge(questions)
        except NoAnswer as error:
            self._failure = str(error)
            return [nothing] * len(questions)
        if any(not all(map(math.isfinite, values)) for values in found):
            self._failure = f"{self.endpoint.url} gives no number for some pictures"
        return found

    def remember(self, found: dict[bytes, Values]) -> None:
        """Those that are numbers; the oldest are forgotten."""
        for digest, values in found.items():
            if all(map(math.isfinite, values)):
                self._known[digest] = values
                self._known.move_to_end(digest)
        while len(self._known) > self.cache:
            self._known.popitem(last=False)


def as_png(image: Tensor) -> str:
    """[3, H, W] in [0, 1] -> PNG in base64."""
    file = io.BytesIO()
    as_picture(image).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
