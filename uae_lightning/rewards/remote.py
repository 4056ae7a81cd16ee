"""RemoteReward: what rewards have in common that are asked over a network."""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch

from uae_lightning.interfaces import Reward
from uae_lightning.paths import weightless
from uae_lightning.remote.answers import Answers
from uae_lightning.remote.endpoint import Endpoint, NoAnswer, concurrently
from uae_lightning.remote.pictures import as_png
from uae_lightning.types import RewardInput, RewardOutput

Values = tuple[float, ...]  # of one picture: the total, then the parts


@dataclass(frozen=True)
class Question:
    """One picture as it is sent: pictures are PNG in base64."""

    image: str
    caption: str
    original: str | None = None
    metadata: str | None = None  # JSON


class RemoteReward(Reward):
    """Base: distinct pictures, cut into requests, some of them under way at a time; what was judged once is remembered.

    Args:
        endpoint: that is asked.
        batch_size: pictures in a request.
        concurrency: requests under way at a time. `micro_batch` of callbacks.RewardCallback is how many pictures there
            are to share out: batch_size x concurrency and more.
        judge: what decides a judgment beside picture and text, as JSON.
        cache: judgments that are remembered in memory by the content of picture and text; 0 remembers none.
        cache_folder: judgments are kept there as well, as soon as they are there: a run that goes on, or another one,
            asks only for what is missing. Several processes may share it. None keeps none.
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
        judge: list[Any],
        cache: int,
        cache_folder: str | None,
        on_failure: Literal["stop", "skip_group"],
        sends_originals: bool = False,
        parts: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.endpoint, self.batch_size, self.concurrency = endpoint, batch_size, concurrency
        self.skips_failures, self.needs_originals, self.parts = on_failure == "skip_group", sends_originals, parts
        self.planned = weightless()  # nobody is asked
        judge = [type(self).__name__, *judge, list(parts)]
        self.answers = Answers(judge, cache, cache_folder, self.are_values)
        if not self.planned:
            self.answers.check()
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
        keys = [self.answers.key(astuple(question)) for question in questions]
        found = {key: tuple(values) for key, values in self.answers.known(keys).items()}
        asked = {key: one for key, one in zip(keys, questions, strict=True) if key not in found}
        batches = [list(asked)[first : first + self.batch_size] for first in range(0, len(asked), self.batch_size)]
        for answers in concurrently(
            lambda batch: self.kept(batch, [asked[key] for key in batch]), batches, self.concurrency
        ):
            found |= answers
        if bad := sum(not all(map(math.isfinite, found[key])) for key in keys):
            warnings.warn(f"{type(self).__name__} could not judge {bad} pictures: {self._failure}", stacklevel=2)
        return [found[key] for key in keys]

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

    def kept(self, keys: list[bytes], questions: list[Question]) -> dict[bytes, Values]:
        """The answers of a batch; those that are numbers are remembered."""
        found = dict(zip(keys, self.answer(questions), strict=True))
        self.answers.keep({key: values for key, values in found.items() if all(map(math.isfinite, values))})
        return found

    def are_values(self, answer: Any) -> bool:
        """Whether JSON is what `judge` gives for a picture that it could judge."""
        if not isinstance(answer, list) or len(answer) != 1 + len(self.parts):
            return False
        return all(isinstance(value, float) and math.isfinite(value) for value in answer)
