"""Which of two captions is preferred: both orders, what is no preference, and whose captions are compared."""

from __future__ import annotations

import json
import re

import pytest
import torch
from fake_endpoint import Fake, picture_in, says, text_in

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.evaluation.pairwise_captions import CRITERIA, PairwiseCaptions, verdict
from uae_lightning.evaluation.suite import Subject
from uae_lightning.remote import endpoint
from uae_lightning.rewards.openai_chat import OpenAIChat
from uae_lightning.scenes.data import ScenesData
from uae_lightning.types import Captions, Sampling
from uae_lightning.usage import UsageError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def captions(*texts: str) -> Captions:
    return Captions(list(texts), torch.zeros(len(texts), 1), torch.ones(len(texts), 1, dtype=torch.bool))


def compared(answer, own: list[str], others: list[str]):
    with Fake(answer) as fake:
        suite = PairwiseCaptions(OpenAIChat(fake.url, "m", concurrency=3))
        images = torch.arange(len(own))[:, None, None, None].expand(-1, 3, 4, 4) / 255
        return suite, suite.compared(images, captions(*own), others), fake.requests


def of_words(request) -> dict:
    """A judge that counts words, and shows insight where a picture is right."""
    first, second = re.findall(r"caption:\n(.*)\n", text_in(request))
    marks = [[len(one.split()), 5, 9 if f"number {picture_in(request).getpixel((0, 0))[0]}" in one else 2]
             for one in (first, second)]  # fmt: skip
    return says(f"First: {marks[0]}\nSecond: {marks[1]}")


def test_a_win_is_one_in_both_orders():
    # red if one order is enough, numbers are those of the other caption, or pictures are mixed up
    own = ["a picture of number 0", "short", "the same", "with number 2 in it"]
    suite, items, requests = compared(of_words, own, ["a", "a longer one", "the same", "number 3"])
    assert items["win"] == [1, 0, 0, 0] and items["loss"] == [0, 1, 0, 1] and items["tie"] == [0, 0, 1, 0]
    assert items["win_rate"] == [1, 0, 0.5, 0] and items["prefers_first"] == [0.0] * 4
    assert items["more_comprehensiveness"] == [4, -2, 0, 3] and items["more_insight"] == [7, 0, 0, -7]
    assert len(requests) == 6 and not any("the same" in text_in(request) for request in requests)
    figures = suite.figures(items)
    assert figures["win"]["mean"] == 0.25 and figures["win"]["low"] < 0.25 < figures["win"]["high"]
    better = {name: suite.better(name) for name in figures}
    assert better["win"] == better["win_rate"] == 1 and better["loss"] == better["unread"] == -1 and not better["tie"]


def test_a_judge_that_prefers_a_place_finds_ties():
    # red if only one order is asked, or the preference of a place is a win or a loss
    for lists, first in (("First: [9, 9, 9]\nSecond: [1, 1, 1]", 1.0), ("First: [1, 1, 1]\nSecond: [9, 9, 9]", 0.0)):
        _, items, _ = compared(says(lists), ["a", "b"], ["c", "d"])
        assert items["tie"] == [1, 1] and items["win"] == items["loss"] == [0, 0] and items["win_rate"] == [0.5, 0.5]
        assert items["prefers_first"] == [first] * 2 and items["more_fluency"] == [0, 0]


def test_by_hand():
    # red with the sides of the second order swapped, or a tie in one order counted as a win
    found = verdict([8, 7, 6, 5, 7, 6], [5, 5, 5, 9, 5, 6])
    assert found["win"] == 1 and [found[f"more_{name}"] for name in CRITERIA] == [3.5, 0, 0.5]
    assert verdict([8, 7, 6, 8, 7, 6], [5, 5, 5, 9, 5, 6])["tie"] == 1
    assert verdict([1, 1, 1, 2, 1, 1], [2, 2, 2, 1, 1, 1]) | {"unread": 0} == {
        "win": 0, "tie": 0, "loss": 1, "win_rate": 0, "prefers_first": 0,
        "more_comprehensiveness": -1, "more_fluency": -0.5, "more_insight": -0.5, "unread": 0,
    }  # fmt: skip


def test_half_an_answer_is_none():
    # red if the one order that was read decides
    found = verdict([9, 9, 9, 1, 1, 1], None)
    assert found["tie"] == 1 and found["unread"] == 0.5 and found["more_fluency"] == 0
    with pytest.raises(ValueError, match="did not answer 100% of 4 questions as it was asked"):
        compared(says("The first."), ["a", "b"], ["c", "d"])


# ------------------------------------------------------------------------------------------------ whose captions


@pytest.fixture
def subject(make_encoder, make_projector, make_decoder):
    model = AutoEncoder(
        make_encoder(), make_projector(), make_decoder(), sampling=Sampling(1), captioning=Captioning(1.0, 8)
    )
    torch.manual_seed(1)
    other = make_encoder()
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(weight.flip(0))
    return Subject(
        model.eval(), ScenesData(validation_pictures=4, validation_batch_size=3), 4, 4, make_reference=lambda: other
    )


def test_against_the_encoder_before(subject):
    # red if its captions are those of the encoder now, or sampled in another way
    with Fake(says("First: [1, 1, 1]\nSecond: [1, 1, 1]")) as fake:
        suite = PairwiseCaptions(OpenAIChat(fake.url, "m", concurrency=1))
        assert suite.measure(subject)["tie"] == [1] * 4
        pairs = {tuple(re.findall(r"caption:\n(.*)\n", text_in(request))) for request in fake.requests}
        write, how = subject.reference.generate, vars(subject.model.captioning)
        before = [
            write(batch.images, samples=1, seed=subject.seed_of(number), **how).texts
            for number, batch in enumerate(subject.held_out())
        ]
        wanted = list(zip(subject.round_trip.captions.texts, sum(before, []), strict=True))
        assert all(own != other for own, other in wanted)
        assert pairs == {*wanted, *(pair[::-1] for pair in wanted)}
        fake.requests.clear()
        subject.make_reference = lambda: subject.model.encoder
        del subject.__dict__["reference"]
        assert suite.measure(subject)["tie"] == [1] * 4 and not fake.requests


def test_against_a_file(subject, tmp_path):
    # red if captions are found by their order, or one that is missing is empty
    keys = subject.round_trip.keys
    path = tmp_path / "captions.jsonl"
    lines = [{"image": f"photos/{key}.png", "caption": f"of {key}", "by": "x"} for key in reversed(keys)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Fake(says("First: [1, 1, 1]\nSecond: [1, 1, 1]")) as fake:
        chat = OpenAIChat(fake.url, "m")
        PairwiseCaptions(chat, str(path)).measure(subject)
        asked = "\n".join(map(text_in, fake.requests))
        for key, own in zip(keys, subject.round_trip.captions.texts, strict=True):
            assert f"First caption:\n{own}\n\nSecond caption:\nof {key}\n" in asked
        path.write_text(json.dumps(lines[0]))
        with pytest.raises(
            UsageError, match=re.escape(f"has no caption of {keys[0]} (3 of 4 held-out pictures have none)")
        ):
            PairwiseCaptions(chat, str(path)).measure(subject)
        path.write_text('{"image": 1}')
        with pytest.raises(UsageError, match="PairwiseCaptions: .*line 1 is not in its format .'image' is no text"):
            PairwiseCaptions(chat, str(path)).missing(subject.data)
        with pytest.raises(UsageError, match="no.jsonl does not exist: put a JSONL of captions"):
            PairwiseCaptions(chat, str(tmp_path / "no.jsonl")).missing(subject.data)


def test_names_that_two_pictures_share_are_none(subject, tmp_path):
    # red if the caption of a/1.png is taken for b/1.png
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "a/1.png", "caption": "A"}\n{"image": "b/1.png", "caption": "B"}\n')
    with Fake(says("")) as fake:
        suite = PairwiseCaptions(OpenAIChat(fake.url, "m"), str(path))
    assert suite.of(["a/1.png", "b/1"]) == ["A", "B"]
    with pytest.raises(UsageError, match="has no caption of 1"):
        suite.of(["1"])
