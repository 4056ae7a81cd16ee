"""OpenAIChat against an endpoint that speaks as vLLM and OpenAI do."""

from __future__ import annotations

import pytest
from fake_endpoint import Fake, says, text_in, tokens

from uae_lightning.remote import endpoint
from uae_lightning.rewards.openai_chat import OpenAIChat, Turn
from uae_lightning.usage import UsageError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def echo(request: dict) -> dict:
    return says(f"<think>hm</think> {text_in(request)}!")


def test_each_turn_has_its_answer_and_is_asked_once():
    # red if answers are mixed up, asked again, or thoughts are answers
    with Fake(echo) as fake:
        chat = OpenAIChat(f"{fake.url}/v1", "m", concurrency=4)
        turns = [Turn(f"text {row % 5}") for row in range(10)]
        assert chat.written(turns) == [f"text {row % 5}!" for row in range(10)] and len(fake.requests) == 5
        assert chat.written([Turn("text 3"), Turn("text 3", ("aW1hZ2U=",))]) == ["text 3!"] * 2
        assert len(fake.requests) == 6  # with a picture it is another question


def test_memory_has_a_limit():
    # red without a limit, or if the newest is what is forgotten
    with Fake(echo) as fake:
        chat = OpenAIChat(fake.url, "m", cache=2, concurrency=1)
        for text in ("a", "b", "c", "b", "c", "a"):
            chat.written([Turn(text)])
        assert [text_in(request) for request in fake.requests] == ["a", "b", "c", "a"]


def test_what_is_sent():
    # red if pictures go to the wrong side of the text, `more` is not laid over it, or a null is sent
    with Fake(says("4")) as fake:
        chat = OpenAIChat(fake.url, "a-model", max_tokens=7, more={"temperature": None, "seed": 1})
        chat.written([Turn("q", ("a", "b"), system="s", images_last=True)])
        (request,) = fake.requests
        system, user = request.pop("messages")
        assert request == {"model": "a-model", "max_tokens": 7, "seed": 1}
        assert system == {"role": "system", "content": "s"} and user["content"][0] == {"type": "text", "text": "q"}
        urls = [part["image_url"]["url"] for part in user["content"][1:]]
        assert urls == ["data:image/png;base64,a", "data:image/png;base64,b"]
        chat.written([Turn("q", ("a",))])
        (user,) = fake.requests[1]["messages"]
        assert [part["type"] for part in user["content"]] == ["image_url", "text"]


def test_first_words_are_those_of_all_spellings():
    # red if ` Yes` and `yes` are two words, or the text is asked for
    with Fake(tokens(**{"Yes": 0.5, " yes": 0.25, "No": 0.2})) as fake:
        (words,) = OpenAIChat(fake.url, "m").first_words([Turn("q")])
        assert words == {"yes": pytest.approx(0.75), "no": pytest.approx(0.2)}
        assert fake.requests[0]["max_tokens"] == 1 and fake.requests[0]["top_logprobs"] == 20


def test_mistakes_are_one_message(monkeypatch):
    # red if the key, the URL or what was asked are not checked, or no answer is no error
    with pytest.raises(UsageError, match="OpenAIChat: there is no environment variable NO_SUCH_KEY"):
        OpenAIChat("http://h/v1", "m", api_key_env="NO_SUCH_KEY").check()
    with pytest.raises(UsageError, match="OpenAIChat: 'h/v1.*' is no URL"):
        OpenAIChat("h/v1", "m")
    with pytest.raises(UsageError, match="`more` cannot change model"):
        OpenAIChat("http://h/v1", "m", more={"model": "other"})
    with Fake({"body": {"choices": [{"logprobs": None}]}}) as fake:
        with pytest.raises(UsageError, match="gives no log-probabilities"):
            OpenAIChat(fake.url, "m").first_words([Turn("q")])
    with Fake({"status": 503}) as fake:
        with pytest.raises(UsageError, match="OpenAIChat: http.*2 attempts: it answers 503.*start the server"):
            OpenAIChat(fake.url, "m", attempts=2).written([Turn("q")])
        assert len(fake.requests) == 2


def test_the_key_comes_from_the_environment(monkeypatch):
    # red if it is not sent, or goes into the request
    monkeypatch.setenv("A_KEY", "secret")
    with Fake(says("a")) as fake:
        OpenAIChat(fake.url, "m", api_key_env="A_KEY").written([Turn("q")])
        assert fake.headers[0]["Authorization"] == "Bearer secret" and "secret" not in str(fake.requests)
