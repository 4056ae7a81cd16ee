"""OpenAIJudge against an endpoint that speaks as vLLM and OpenAI do."""

from __future__ import annotations

import re

import pytest
import torch
from fake_endpoint import Fake, inputs_of, picture_in, says, tokens

from uae_lightning.remote import endpoint
from uae_lightning.rewards.openai_judge import OpenAIJudge
from uae_lightning.usage import UsageError

RUBRIC = "The text is: {caption}. Rate the picture from 1 to 5; end with Final score: N."


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def by_brightness(request: dict) -> dict:
    yes = 0.2 + picture_in(request).getpixel((0, 0))[0] / 100
    return tokens(**{"Yes": yes / 2, " yes": yes / 2, "No": 0.9 - yes, "Maybe": 0.1})


def test_the_probability_of_yes_among_yes_and_no():
    # red if one spelling alone counts, if no is left out, or pictures and answers are mixed up
    with Fake(by_brightness) as fake:
        judge = OpenAIJudge(f"{fake.url}/v1/", "a-model", concurrency=3)
        found = judge(inputs_of(5))
        expected = [(0.2 + 0.1 * row) / 0.9 for row in range(5)]
        torch.testing.assert_close(found.parts["openai_judge"], torch.tensor(expected))
        assert len(fake.requests) == 5 and not judge.needs_originals
        asked = {request["messages"][0]["content"][1]["text"] for request in fake.requests}
        assert asked == {f'Does this picture show "text {row}"? Answer yes or no.' for row in range(5)}
        assert all(request["max_tokens"] == 1 and request["logprobs"] for request in fake.requests)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Final score: 4", 0.75),
        ("2 dogs of 3 are there. **Final score: 3.5**", 0.625),
        ("<think>5, or 4?</think>\nFinal score: 1", 0.0),
    ],
)
def test_the_last_number_of_a_rubric(text, expected):
    # red if the first number counts, thoughts do, or the scale is not taken out
    with Fake(says(text)) as fake:
        judge = OpenAIJudge(fake.url, "m", question=RUBRIC, answer="score")
        assert judge(inputs_of(1)).total.item() == pytest.approx(expected)
        assert "logprobs" not in fake.requests[0] and "The text is: text 0." in str(fake.requests[0])


@pytest.mark.filterwarnings("ignore:.*could not judge")
@pytest.mark.parametrize("answer", [says("I cannot tell"), says("Final score: 17"), says("")])
def test_an_answer_without_a_score_is_a_picture_that_was_not_judged(answer):
    # red if what is no score is 0, or is clipped
    with Fake(answer) as fake:
        judge = OpenAIJudge(fake.url, "m", question=RUBRIC, answer="score", attempts=1)
        assert judge(inputs_of(1)).total.isnan().all() and "no number" in judge.failure()
    with Fake(tokens(Maybe=0.9)) as fake:
        assert OpenAIJudge(fake.url, "m", attempts=1)(inputs_of(1)).total.isnan().all()


@pytest.mark.parametrize("trouble", [{"status": 429, "headers": {"Retry-After": "0"}}, {"body": {}}, {"body": b"{"}])
def test_trouble_passes(trouble):
    # red if an answer without choices is final
    with Fake(trouble, by_brightness) as fake:
        assert OpenAIJudge(fake.url, "m")(inputs_of(1)).total.isfinite().all() and len(fake.requests) == 2


def test_mistakes_are_one_message():
    # red without the checks of the question, the rubric and the log-probabilities
    with pytest.raises(UsageError, match=re.escape("`question` must name {caption}")):
        OpenAIJudge("http://h/v1", "m", question="Is it good?")
    with pytest.raises(UsageError, match="lowest .5. must be below highest .1."):
        OpenAIJudge("http://h/v1", "m", lowest=5.0, highest=1.0)
    with pytest.raises(UsageError, match="OpenAIJudge: there is no environment variable NO_SUCH_KEY"):
        OpenAIJudge("http://h/v1", "m", api_key_env="NO_SUCH_KEY")
    with Fake({"body": {"choices": [{"logprobs": None, "message": {"content": "Yes"}}]}}) as fake:
        with pytest.raises(UsageError, match="gives no log-probabilities: set `answer: score`"):
            OpenAIJudge(fake.url, "m")(inputs_of(1))
