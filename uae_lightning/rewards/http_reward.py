"""HttpReward: a reward that is computed elsewhere, by `uae serve-reward` or whatever speaks the same few lines of JSON.

    POST {"images": [PNG in base64], "captions": [text], "originals": [PNG], "metadata": [object or null]}
      -> {"scores": [number or null], "parts": {name: [number or null]}}

`originals` and `metadata` are there where they are sent. null, or NaN, is of a picture that could not be judged.
Nothing is pickled: an answer is numbers.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from uae_lightning.ranges import Count, Natural, Positive, checked
from uae_lightning.remote.endpoint import Endpoint, NotAsAsked
from uae_lightning.rewards.remote import Question, RemoteReward, Values


@checked
class HttpReward(RemoteReward):
    """The scores that a server gives pictures and their texts.

    Args:
        url: such as http://127.0.0.1:8000/score.
        sends_originals: the server compares with originals; without them it judges by texts.
        parts: figures of the answer that are logged beside the total.
        api_key_env: name of the environment variable that holds the server's token.
        timeout: seconds that an attempt may take.
        attempts: at most, for each request; between them are 0.5, 1, 2, ... s, or what the server asks for.
        batch_size, concurrency, cache, cache_folder, on_failure: as in RemoteReward. On disk judgments are known by the
            URL: a server that takes another reward under the same URL needs another folder.
    """

    name = "http_reward"

    def __init__(
        self,
        url: str,
        sends_originals: bool = False,
        parts: list[str] | None = None,
        api_key_env: str | None = None,
        timeout: Positive = 60.0,
        attempts: Count = 5,
        batch_size: Count = 16,
        concurrency: Count = 4,
        cache: Natural = 4096,
        cache_folder: str | None = None,
        on_failure: Literal["stop", "skip_group"] = "stop",
    ) -> None:
        endpoint = Endpoint(type(self).__name__, url, api_key_env, timeout, attempts)
        named = tuple(parts or ())
        super().__init__(
            endpoint, batch_size, concurrency, [url], cache, cache_folder, on_failure, sends_originals, named
        )

    def judge(self, questions: list[Question]) -> list[Values]:
        body: dict[str, Any] = {
            "images": [one.image for one in questions],
            "captions": [one.caption for one in questions],
        }
        if self.needs_originals:
            body["originals"] = [one.original for one in questions]
        if any(one.metadata for one in questions):
            body["metadata"] = [json.loads(one.metadata or "null") for one in questions]
        return self.endpoint.post(body, lambda answer: self.read(answer, len(questions)))

    def read(self, answer: Any, count: int) -> list[Values]:
        """Raises NotAsAsked, KeyError or TypeError where it is no answer about `count` pictures."""
        columns = [answer["scores"], *(answer["parts"][name] for name in self.parts)]
        for column in columns:
            if len(column) != count:
                raise NotAsAsked(f"{len(column)} values for {count} pictures")
        return [
            tuple(math.nan if value is None else number(value) for value in row) for row in zip(*columns, strict=True)
        ]


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotAsAsked(f"{value!r:.40} in place of a number")
    return float(value)
