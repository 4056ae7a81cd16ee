"""OpenAIChat: a vision-language model behind any OpenAI-compatible endpoint, asked about pictures; and how its answers
are read, which `OpenAIJudge` does too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from uae_lightning.interfaces.encoder import after_thoughts
from uae_lightning.ranges import Count, Natural, Positive, checked
from uae_lightning.remote.answers import Answers
from uae_lightning.remote.endpoint import Endpoint, NoAnswer, NotAsAsked, checked_url, concurrently
from uae_lightning.usage import UsageError

BLANKS = " \n\t\"'.,!*\u2581\u0120"  # around a word that is a token; the last two are blanks in vocabularies
OWN = ("model", "messages", "logprobs")  # fields that `more` leaves alone
Words = dict[str, float]


@dataclass(frozen=True)
class Turn:
    """What is asked, and what is shown with it.

    Args:
        images: PNG in base64, before the text.
        system: a message before all that; "" is none.
        images_last: they come after the text.
    """

    text: str
    images: tuple[str, ...] = ()
    system: str = ""
    images_last: bool = False

    def messages(self) -> list[dict[str, Any]]:
        shown = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one}"}} for one in self.images]
        text = [{"type": "text", "text": self.text}]
        said = [{"role": "user", "content": text + shown if self.images_last else shown + text}]
        return [{"role": "system", "content": self.system}, *said] if self.system else said


@checked
class OpenAIChat:
    """Asks with bounded retries, some requests at a time; what was answered once is remembered.

    Args:
        url: of the API, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1; /chat/completions is added.
        model: as the endpoint calls it.
        max_tokens: of an answer in words, thoughts included.
        more: further fields of each request, or others in place of those that are sent: {chat_template_kwargs:
            {enable_thinking: false}} for Qwen3.5 on vLLM; null leaves a field out.
        api_key_env: name of the environment variable that holds the key; None sends none.
        timeout: seconds that an attempt may take.
        attempts: at most, for each request.
        concurrency: requests under way at a time.
        cache: answers that are remembered in memory by the content of pictures and text; 0 remembers none.
        cache_folder: answers are kept there as well, by model and content, as soon as they are there: an evaluation
            that was stopped asks only for what is missing. Several processes may share it. None keeps none.

    Raises:
        UsageError: the URL is none, or `more` has a field that is not its own.
    """

    def __init__(
        self,
        url: str,
        model: str,
        max_tokens: Count = 1024,
        more: dict[str, Any] | None = None,
        api_key_env: str | None = None,
        timeout: Positive = 120.0,
        attempts: Count = 5,
        concurrency: Count = 16,
        cache: Natural = 65536,
        cache_folder: str | None = None,
    ) -> None:
        if taken := sorted({*(more or {})} & {*OWN}):
            raise UsageError(f"OpenAIChat: `more` cannot change {', '.join(taken)}: leave it out")
        self.url, self.api_key_env, self.timeout, self.attempts = chat_url(url), api_key_env, timeout, attempts
        self.model, self.max_tokens, self.more = model, max_tokens, more or {}
        self.concurrency = concurrency
        judge = [type(self).__name__, model, max_tokens, self.more]
        self.answers = Answers(judge, cache, cache_folder, lambda answer: isinstance(answer, str | dict))
        checked_url(type(self).__name__, self.url)

    @cached_property
    def endpoint(self) -> Endpoint:
        """Made when it is first needed: who is never asked needs no key."""
        return Endpoint(type(self).__name__, self.url, self.api_key_env, self.timeout, self.attempts)

    def check(self) -> None:
        """Raises UsageError where there is no such environment variable, or no such folder; nobody is asked."""
        _ = self.endpoint
        self.answers.check()

    def written(self, turns: list[Turn]) -> list[str]:
        """The model's answers, without thoughts.

        Raises:
            UsageError: there was no answer to one of them, or none as the API gives it.
        """
        return self._answers(turns, False, lambda answer: after_thoughts(text_of(answer)))

    def first_words(self, turns: list[Turn]) -> list[Words]:
        """Probabilities of the words that an answer may begin with: those of its first token, in small letters. Words
        that are not among the most probable (`top_logprobs`, 20) are not there.

        Raises:
            UsageError: as `written`; or the endpoint gives no log-probabilities.
        """
        return self._answers(turns, True, self._words)

    def _words(self, answer: Any) -> Words:
        if (found := words_at_start(answer)) is None:
            raise UsageError(
                "OpenAIChat: the endpoint gives no log-probabilities, which this is judged by: take one that does, "
                "such as vLLM, SGLang or llama.cpp"
            )
        return found

    def _answers(self, turns: list[Turn], of_words: bool, read: Callable[[Any], Any]) -> list[Any]:
        keys = [self.answers.key([asdict(turn), of_words]) for turn in turns]
        found = self.answers.known(keys)
        asked = {key: turn for key, turn in zip(keys, turns, strict=True) if key not in found}
        endpoint = self.endpoint  # made before threads ask for it

        def answer(key: bytes) -> Any:
            said = endpoint.post(self._body(asked[key], of_words), read)
            self.answers.keep({key: said})
            return said

        try:
            answers = concurrently(answer, [*asked], self.concurrency)
        except NoAnswer as error:
            raise UsageError(f"OpenAIChat: {error}: start the server, correct `url`, or raise `timeout`") from error
        found |= dict(zip(asked, answers, strict=True))
        return [found[key] for key in keys]

    def _body(self, turn: Turn, of_words: bool) -> dict[str, Any]:
        limit = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20} if of_words else {"max_tokens": self.max_tokens}
        body = {"model": self.model, "temperature": 0, "messages": turn.messages()} | limit | self.more
        return {name: value for name, value in body.items() if value is not None}


def chat_url(url: str) -> str:
    return f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


def text_of(answer: Any) -> str:
    """What the model wrote; raises NotAsAsked where it is no text."""
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise NotAsAsked("no text")
    return text


def words_at_start(answer: Any) -> Words | None:
    """Probabilities of the most probable first tokens as words; None where the endpoint gives none."""
    logprobs = answer["choices"][0]["logprobs"]
    if logprobs is None:
        return None
    found: Words = {}
    for candidate in logprobs["content"][0]["top_logprobs"]:
        word = candidate["token"].strip(BLANKS).lower()
        found[word] = found.get(word, 0.0) + math.exp(candidate["logprob"])
    return found
