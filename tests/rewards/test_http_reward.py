"""HttpReward against an endpoint that is slow, wrong, busy or away."""

from __future__ import annotations

import math
import socket
import time

import pytest
import torch
from fake_endpoint import Fake, brightness, inputs_of, levels

from callbacks import RewardCallback
from callbacks.reward import evaluate
from uae_lightning.parallel.collectives import RaisedTogether
from uae_lightning.remote import endpoint
from uae_lightning.rewards.by_caption import ByCaption
from uae_lightning.rewards.http_reward import HttpReward
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.types import RewardInput
from uae_lightning.usage import UsageError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_scores_come_back_in_order_and_are_asked_for_in_batches():
    # red if pictures are cut differently from captions, or answers are put together as they arrive
    with Fake(lambda request: brightness(request, after=0.05 * (len(request["images"]) == 2))) as fake:
        reward = HttpReward(fake.url, batch_size=2, parts=["letters"])
        found = reward(inputs_of(5))
        assert found.total.tolist() == pytest.approx([0, 10 / 255, 20 / 255, 30 / 255, 40 / 255], abs=1e-6)
        assert found.parts.keys() == {"http_reward", "letters"} and found.parts["letters"].tolist() == [6.0] * 5
        assert sorted(len(request["images"]) for request in fake.requests) == [1, 2, 2] and fake.most > 1
        assert all(request.keys() == {"images", "captions"} for request in fake.requests)


def test_no_more_requests_at_a_time_than_asked_for():
    # red if there is a thread for each request
    with Fake(lambda request: brightness(request, after=0.02)) as fake:
        HttpReward(fake.url, batch_size=1, concurrency=2)(inputs_of(8))
        assert fake.most == 2


def test_originals_and_metadata_go_along_where_they_are_wanted():
    # red if originals are always sent, or metadata never
    with Fake(brightness) as fake:
        rows = [{"tag": "colors"}, {}]
        pairs = RewardInput(levels(2).flip(0), levels(2), ["a", "b"], metadata=rows)
        reward = HttpReward(fake.url, sends_originals=True)
        assert reward.needs_originals and not HttpReward(fake.url).needs_originals
        reward(pairs)
        (request,) = fake.requests
        assert request["metadata"] == rows and request["originals"] == request["images"][::-1]


def test_what_was_judged_is_not_asked_again():
    # red if the text, or the picture, is left out of the digest, or the cache grows past its size
    with Fake(brightness) as fake:
        reward = HttpReward(fake.url, cache=3)
        first = reward(inputs_of(3)).total
        twice = RewardInput(torch.zeros(6, 3, 0, 0), levels(3).repeat(2, 1, 1, 1), [f"text {i}" for i in range(3)] * 2)
        assert torch.equal(reward(twice).total, first.repeat(2)) and len(fake.requests) == 1
        other = RewardInput(torch.zeros(3, 3, 0, 0), levels(3), ["other"] * 3)
        reward(other)
        assert len(fake.requests) == 2 and len(reward.answers.memory) == 3
        forgetful = HttpReward(fake.url, cache=0)
        assert torch.equal(forgetful(inputs_of(3)).total, forgetful(inputs_of(3)).total) and len(fake.requests) == 4


BUSY = [
    {"status": 429, "headers": {"Retry-After": "0.05"}},
    {"status": 503},
    {"status": 0},
    {"body": b"<html>starting</html>"},
    {"body": {"scores": [1.0]}},
    {"body": {"scores": ["1", "2", "3"]}},
    {"body": {"points": [1.0, 2.0, 3.0]}},
    {"body": [1.0, 2.0, 3.0]},
]


@pytest.mark.parametrize("trouble", BUSY, ids=lambda trouble: str(trouble)[:40])
def test_an_endpoint_that_was_in_trouble_is_asked_again(trouble):
    # red if a status, a broken connection or an answer of another form is final, or is taken for a score
    with Fake(trouble, brightness) as fake:
        assert HttpReward(fake.url)(inputs_of(3)).total.isfinite().all() and len(fake.requests) == 2


def test_it_waits_as_long_as_it_is_asked_to_but_not_for_ever(monkeypatch):
    # red if Retry-After is not read, or has no bound
    with Fake({"status": 429, "headers": {"Retry-After": "0.3"}}, brightness) as fake:
        began = time.monotonic()
        HttpReward(fake.url)(inputs_of(1))
        assert 0.3 <= time.monotonic() - began < 3
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.05)
    with Fake({"status": 503, "headers": {"Retry-After": "3600"}}, brightness) as fake:
        HttpReward(fake.url)(inputs_of(1))


def test_a_slow_answer_is_given_up():
    # red without the time-out, or if it does not count as an attempt
    with Fake(lambda request: brightness(request, after=0.5)) as fake:
        reward = HttpReward(fake.url, timeout=0.05, attempts=2)
        with pytest.warns(UserWarning, match="could not judge 2 pictures: .*2 attempts: no answer within 0.05 s"):
            assert reward(inputs_of(2)).total.isnan().all()
        assert len(fake.requests) == 2 and not reward.answers.memory


def scored(reward, count: int = 2, **options):
    return RewardCallback(reward, **options).score(inputs_of(count))


@pytest.mark.filterwarnings("ignore:.*could not judge")
def test_a_server_that_is_away_stops_the_run_or_costs_groups():
    # red if failures are scored 0, the reason is not told, or on_failure is not asked, through a sum as well
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(RaisedTogether, match=rf"HttpReward: 'total' .*2 of 2 pictures \({url}.*refused.*with --resume"):
        scored(HttpReward(url, attempts=2))
    skips = HttpReward(url, attempts=1, on_failure="skip_group")
    assert scored(skips).total.isnan().all()
    summed = WeightedSum({"a": skips}, {"a": 2.0})
    assert summed.skips_failures and scored(summed).total.isnan().all() and "refused" in summed.failure()
    both = ByCaption(skips, HttpReward(url, attempts=1))
    assert both.skips_failures and scored(both).total.isnan().all() and "refused" in both.failure()
    assert not WeightedSum({"a": PixelSimilarity()}, {"a": 1.0}).skips_failures


@pytest.mark.filterwarnings("ignore:.*could not judge")
@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_picture_without_a_number_is_one_that_was_not_judged(nothing):
    # red if null is 0, or a NaN is remembered
    with Fake(
        lambda asked: {"body": {"scores": [nothing if "1" in text else 0.5 for text in asked["captions"]]}}
    ) as fake:
        reward = HttpReward(fake.url, on_failure="skip_group")
        assert scored(reward).total.isnan().tolist() == [False, True] and "no number for some" in reward.failure()
        reward(inputs_of(2))
        assert [len(request["images"]) for request in fake.requests] == [2, 1]
        with pytest.raises(RaisedTogether, match="gives no number for some pictures"):
            scored(HttpReward(fake.url))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "correct the URL"),
        (401, "with `api_key_env`"),
        (422, "does not take what is asked"),
        (301, "correct the URL"),
    ],
)
def test_a_mistake_is_told_at_once_whatever_failures_cost(status, words):
    # red if a wrong URL or key is tried again, or skipped
    with Fake({"status": status, "body": {"error": "no such thing"}}) as fake:
        with pytest.raises(UsageError, match=rf"HttpReward: {fake.url} answers {status} .*no such thing.*{words}"):
            HttpReward(fake.url, on_failure="skip_group")(inputs_of(2))
        assert len(fake.requests) == 1


def test_the_key_comes_from_the_environment_and_is_told_nobody(monkeypatch):
    # red if the key is an option, or stands in an error
    with Fake(brightness, {"status": 403}) as fake:
        with pytest.raises(UsageError, match="no environment variable MY_TOKEN: export it"):
            HttpReward(fake.url, api_key_env="MY_TOKEN")
        monkeypatch.setenv("MY_TOKEN", "very-secret")
        reward = HttpReward(fake.url, api_key_env="MY_TOKEN")
        reward(inputs_of(1))
        assert fake.headers[0]["Authorization"] == "Bearer very-secret"
        with pytest.raises(UsageError) as refused:
            reward(inputs_of(2))
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/a", "http://", "http://[", "http://host:port", "http://me:pass@host/score"]
)
def test_what_is_no_url(url):
    # red without checked_url: the first validation would stumble over it
    with pytest.raises(UsageError, match="HttpReward: ") as refused:
        HttpReward(url)
    assert "pass@" not in str(refused.value)


def test_nobody_is_asked_in_a_plan():
    # red if a reward that is built without weights asks its server
    with torch.device("meta"):
        reward = HttpReward("http://127.0.0.1:9/score", parts=["a"])
    found = evaluate(reward, inputs_of(3), 2)
    assert found.total.tolist() == [0.0] * 3 and found.parts.keys() == {"http_reward", "a"}
