"""`uae serve-reward`: what is served is what the reward says, and what is no request is refused."""

from __future__ import annotations

import json
import threading
import urllib.request
from contextlib import contextmanager
from urllib.error import HTTPError

import pytest
import torch
from fake_endpoint import inputs_of, levels

from uae_lightning.cli import main
from uae_lightning.commands import serve_reward
from uae_lightning.interfaces import Reward
from uae_lightning.remote.pictures import as_png
from uae_lightning.rewards import serving
from uae_lightning.rewards.http_reward import HttpReward
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.serving import RewardServer
from uae_lightning.types import RewardInput, RewardOutput
from uae_lightning.usage import UsageError


class Judge(Reward):
    """NaN where the text is bad; counts by metadata."""

    needs_originals = False

    def forward(self, inputs: RewardInput) -> RewardOutput:
        if "broken" in inputs.captions:
            raise RuntimeError("secret path /somewhere")
        total = inputs.reconstructions.mean((1, 2, 3))
        total = torch.where(torch.tensor([text == "bad" for text in inputs.captions]), torch.nan, total)
        rows = inputs.metadata or [{} for _ in inputs.captions]
        return RewardOutput(total, {"mean": total, "count": torch.tensor([float(row.get("count", 0)) for row in rows])})


@contextmanager
def served(reward: Reward, **options):
    with RewardServer(reward, ("127.0.0.1", 0), **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_served_reward_says_what_it_says_at_home():
    # red if micro-batches are put together in another order, or rows of metadata are lost
    rows = [{"count": row} for row in range(5)]
    inputs = inputs_of(5, metadata=rows)
    with served(Judge(), micro_batch=2) as server:
        found = HttpReward(server.url, batch_size=5, parts=["count"])(inputs)
    torch.testing.assert_close(found.total, Judge()(inputs).total)
    assert found.parts["count"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_reward_with_originals_is_served():
    # red if originals are not read, or a client that sends none is given a score
    pairs = RewardInput(levels(3).flip(0), levels(3), ["a", "b", "c"])
    with served(PixelSimilarity()) as server:
        found = HttpReward(server.url, sends_originals=True)(pairs)
        torch.testing.assert_close(found.total, PixelSimilarity()(pairs).total)
        with pytest.raises(
            UsageError, match="answers 422.*PixelSimilarity compares with originals: set sends_originals"
        ):
            HttpReward(server.url)(pairs)


@pytest.mark.filterwarnings("ignore:.*")
def test_what_cannot_be_judged_costs_its_picture_and_no_server():
    # red if NaN is sent as it is (no JSON), or an error of the model ends the server or tells its paths
    with served(Judge()) as server:
        inputs = RewardInput(torch.zeros(2, 3, 0, 0), levels(2), ["bad", "good"])
        assert HttpReward(server.url)(inputs).total.isnan().tolist() == [True, False]
        broken = HttpReward(server.url, attempts=1)
        assert broken(RewardInput(torch.zeros(1, 3, 0, 0), levels(1), ["broken"])).total.isnan().all()
        assert "500" in broken.failure() and "secret" not in broken.failure()
        assert HttpReward(server.url)(inputs_of(2)).total.isfinite().all()


def status_of(url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} if headers is None else headers
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_what_is_no_request_is_refused_with_the_reason(monkeypatch):
    # red without any one of the checks of a request
    image = as_png(levels(1)[0])
    other = as_png(levels(1, side=6)[0])
    wrong = {
        "not JSON": b"{",
        "an object": b"[]",
        "captions must": json.dumps({"images": [image]}).encode(),
        "images must be a list of 1": json.dumps({"captions": ["a"], "images": [image, image]}).encode(),
        "images must be PNG": json.dumps({"captions": ["a"], "images": ["Zm9v"]}).encode(),
        "of one size": json.dumps({"captions": ["a", "b"], "images": [image, other]}).encode(),
        "metadata must": json.dumps({"captions": ["a"], "images": [image], "metadata": {}}).encode(),
    }
    with served(Judge()) as server:
        for words, body in wrong.items():
            status, said = status_of(server.url, body)
            assert status == 400 and words in said, said
        right = json.dumps({"captions": ["a"], "images": [image]}).encode()
        assert status_of(server.url, right)[0] == 200
        assert status_of(server.url, right, {"Content-Type": "text/plain"})[0] == 415  # as a page in a browser could
        assert status_of(server.url.replace("/score", "/other"), right)[0] == 404
        monkeypatch.setattr(serving, "MOST_BYTES", 10)
        assert status_of(server.url, right)[0] == 413
        monkeypatch.undo()
        monkeypatch.setattr(serving, "MOST_PIXELS", 10)
        assert status_of(server.url, right)[0] == 413
        with urllib.request.urlopen(server.url.replace("/score", "/health"), timeout=10) as health:
            assert json.load(health) == {"reward": "Judge", "originals": False}


def test_a_token_is_asked_for(monkeypatch):
    # red if a wrong token is as good as the right one
    with served(Judge(), token="of-the-server") as server:
        with pytest.raises(UsageError, match="answers 401"):
            HttpReward(server.url)(inputs_of(1))
        monkeypatch.setenv("A_TOKEN", "of-another")
        with pytest.raises(UsageError, match="answers 401"):
            HttpReward(server.url, api_key_env="A_TOKEN")(inputs_of(1))
        monkeypatch.setenv("A_TOKEN", "of-the-server")
        assert HttpReward(server.url, api_key_env="A_TOKEN")(inputs_of(1)).total.isfinite().all()


def test_who_comes_when_all_places_are_taken_comes_again(monkeypatch):
    # red if requests wait without bound: 503 says when to come again
    with served(Judge()) as server:
        while server.room.acquire(blocking=False):
            pass
        status, said = status_of(server.url, b"{}")
        assert status == 503 and "busy" in said
        server.room.release()
        assert HttpReward(server.url)(inputs_of(2)).total.isfinite().all()


def test_the_command_says_what_is_wrong(capsys, tmp_path, monkeypatch):
    # red if it listens on other addresses without a token, or without a YAML
    monkeypatch.delenv(serve_reward.TOKEN, raising=False)
    (tmp_path / "pixels.yaml").write_text("class_path: uae_lightning.rewards.pixel_similarity.PixelSimilarity\n")
    config = f"--config={tmp_path / 'pixels.yaml'}"
    wrong = {
        "name the YAML": [],
        "set the environment variable UAE_REWARD_TOKEN": [config, "--host=0.0.0.0"],
        "does not exist": ["--config=none.yaml"],
        "cannot be listened on": [config, "--port=70000"],
        "--device": [config, "--device=nowhere"],
    }
    for words, args in wrong.items():
        assert main(["serve-reward", *args]) == 2
        error = capsys.readouterr().err
        assert error.startswith("uae: error: ") and words in error and len(error.splitlines()) == 1, error
