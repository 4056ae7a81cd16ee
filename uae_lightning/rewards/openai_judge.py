"""OpenAIJudge: a vision-language model behind any OpenAI-compatible endpoint says how well a picture shows its text.

"yes_no" is the probability of yes, as VQAScore (arXiv 2404.01291) has it; "score" reads a number from what the model
writes, as UnifiedReward and other judges with a rubric answer.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from uae_lightning.interfaces.encoder import after_thoughts
from uae_lightning.ranges import Count, Finite, Natural, Positive, checked
from uae_lightning.remote.endpoint import Endpoint
from uae_lightning.rewards.openai_chat import Turn, chat_url, text_of, words_at_start
from uae_lightning.rewards.remote import Question, RemoteReward, Values
from uae_lightning.usage import UsageError

YES_NO = 'Does this picture show "{caption}"? Answer yes or no.'
MARK = "{caption}"


@checked
class OpenAIJudge(RemoteReward):
    """In [0, 1]: the probability of yes among yes and no at the first token of the answer, or a number that the answer
    ends with, from `lowest` to `highest`. A picture whose answer holds neither is one that could not be judged.

    Args:
        url: of the API, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1; /chat/completions is added.
        model: as the endpoint calls it.
        question: asked about each picture; {caption} stands for its text.
        answer: "yes_no" needs an endpoint that gives log-probabilities (vLLM, SGLang, llama.cpp, OpenAI); "score"
            reads the last number of the text.
        lowest, highest: numbers of the rubric that are 0 and 1.
        max_tokens: of the answer that a score is read from.
        api_key_env: name of the environment variable that holds the key; None sends none.
        timeout, attempts, concurrency, cache, cache_folder, on_failure: as in HttpReward; a request is of one picture.
            On disk judgments are known by model and rubric, whatever the URL.

    Raises:
        UsageError: the question does not name {caption}, the URL is none, or there is no such variable.
    """

    name = "openai_judge"

    def __init__(
        self,
        url: str,
        model: str,
        question: str = YES_NO,
        answer: Literal["yes_no", "score"] = "yes_no",
        lowest: Finite = 1.0,
        highest: Finite = 5.0,
        max_tokens: Count = 256,
        api_key_env: str | None = None,
        timeout: Positive = 60.0,
        attempts: Count = 5,
        concurrency: Count = 16,
        cache: Natural = 4096,
        cache_folder: str | None = None,
        on_failure: Literal["stop", "skip_group"] = "stop",
    ) -> None:
        if MARK not in question:
            raise UsageError(f"OpenAIJudge: `question` must name {MARK}, where the text of the picture goes")
        if lowest >= highest:
            raise UsageError(f"OpenAIJudge: lowest ({lowest:g}) must be below highest ({highest:g})")
        endpoint = Endpoint(type(self).__name__, chat_url(url), api_key_env, timeout, attempts)
        judge = [model, question, answer, lowest, highest, max_tokens]
        super().__init__(endpoint, 1, concurrency, judge, cache, cache_folder, on_failure)
        self.model, self.question, self.max_tokens = model, question, max_tokens
        self.of_tokens, self.lowest, self.highest = answer == "yes_no", lowest, highest

    def judge(self, questions: list[Question]) -> list[Values]:
        (question,) = questions
        turn = Turn(self.question.replace(MARK, question.caption), (question.image,))
        body = {"model": self.model, "temperature": 0, "messages": turn.messages()}
        if self.of_tokens:
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
            return [(self.endpoint.post(body, probability),)]
        return [(self.endpoint.post(body | {"max_tokens": self.max_tokens}, self.score),)]

    def score(self, answer: Any) -> float:
        """The last number that is written, NaN where none of the rubric is."""
        numbers = re.findall(r"-?\d+(?:\.\d+)?", after_thoughts(text_of(answer)))
        value = float(numbers[-1]) if numbers else math.nan
        return (
            (value - self.lowest) / (self.highest - self.lowest) if self.lowest <= value <= self.highest else math.nan
        )


def probability(answer: Any) -> float:
    """That of yes among yes and no at the first token, NaN where neither is among its most probable ones."""
    if (words := words_at_start(answer)) is None:
        raise UsageError(
            "OpenAIJudge: the endpoint gives no log-probabilities: set `answer: score` with a rubric in `question`, or "
            "take another endpoint"
        )
    yes, no = words.get("yes", 0.0), words.get("no", 0.0)
    return yes / (yes + no) if yes + no > 0 else math.nan
