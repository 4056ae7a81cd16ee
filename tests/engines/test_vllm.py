"""VllmEngine against a server that samples from what it was told to load; and one that is slow, wrong, busy or away."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import served_captions
import torch
from conftest import SCENES_PROMPTS
from PIL import Image

from uae_lightning.engines.vllm import VllmEngine
from uae_lightning.parallel.collectives import RaisedTogether
from uae_lightning.remote import endpoint
from uae_lightning.types import LoRA
from uae_lightning.usage import UsageError

serve, moved = served_captions.serve, served_captions.moved
ROOT = Path(__file__).parents[2]
HOW = {"samples": 3, "temperature": 1.3, "max_new_tokens": 6, "seed": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


@pytest.fixture
def encoder(make_encoder):
    return moved(make_encoder(LoRA(rank=4, alpha=8)))


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_captions_are_the_trained_policy_s_with_the_server_s_log_probabilities(encoder, images, serve, tmp_path):
    # red if the adapter is not saved, not loaded, or not named in requests: log-probabilities are then up to 5 apart;
    # or if the temperature, what is never sampled or the picture is not the encoder's
    server, shown = serve(), encoder.shown(images[:2])
    engine = VllmEngine(server.url, str(tmp_path))
    said = engine.write(encoder, engine.shown(encoder, shown), **HOW)
    assert said.tokens.shape == said.logp.shape == said.mask.shape and len(said.texts) == 6
    assert said.mask.sum(1).tolist() == said.lengths.tolist() and said.lengths.max() <= 6
    with torch.no_grad():
        logp, _ = encoder.token_logprobs(encoder.see(engine.shown(encoder, shown)), said, temperature=1.3)
        with encoder.reference():
            base, _ = encoder.token_logprobs(encoder.see(shown), said, temperature=1.3)
    torch.testing.assert_close(logp[said.mask], said.logp[said.mask], atol=1e-4, rtol=1e-4)
    assert (base - said.logp)[said.mask].abs().max() > 1
    ends = torch.isin(said.tokens, torch.tensor(encoder.ends)) & said.mask
    assert torch.equal(said.cut, ~ends.any(1)) and said.texts == encoder.spoken(said.tokens)


def test_the_same_seed_asks_for_the_same_captions(encoder, images, serve, tmp_path):
    # red if the seed is not sent, is that of another picture, or answers come back in another order
    server = serve()
    engine = VllmEngine(server.url, str(tmp_path), concurrency=2)
    first = engine.write(encoder, images[:2], **HOW)
    again = engine.write(encoder, images[:2], **HOW)
    alone = engine.write(encoder, images[:1], **HOW)
    other = engine.write(encoder, images[:2], **(HOW | {"seed": 6}))
    assert first.texts == again.texts and first.texts[:3] == alone.texts and first.texts != other.texts
    assert len({body["seed"] for body in server.asked("completions")[1:3]}) == 2


def test_the_adapter_is_brought_up_to_date_where_it_has_changed(encoder, images, serve, tmp_path):
    # red if it is saved for every rollout, or once; if a name or a folder is used again, whose prefixes a server
    # remembers; or if what is out of date stays
    server = serve()
    engine = VllmEngine(server.url, str(tmp_path))
    for change in (False, False, True):
        if change:
            moved(encoder, 1)
        engine.write(encoder, images[:1], **HOW)
    loaded, unloaded = server.asked("/load_lora_adapter"), server.asked("unload_lora_adapter")
    assert len(loaded) == 2 and len({body["lora_name"] for body in loaded}) == 2
    assert [body["lora_name"] for body in unloaded] == [loaded[0]["lora_name"]]
    assert [*server.adapters] == [loaded[1]["lora_name"]] == [path.name for path in tmp_path.iterdir()]
    assert VllmEngine(server.url).token != engine.token


def test_pictures_arrive_in_the_size_in_which_they_are_read(encoder, serve, tmp_path):
    # red if the originals are sent, in their own size, or the update looks at more than the 256 levels of a file
    server, engine = serve(), None
    engine = VllmEngine(server.url, str(tmp_path))
    wide = torch.rand(1, 3, 50, 141, generator=torch.Generator().manual_seed(0))
    shown = engine.shown(encoder, wide)
    assert shown.shape == (1, 3, 64, 128) and torch.equal(encoder.shown(shown), shown)
    engine.write(encoder, shown, **HOW)
    url = server.asked("completions")[-1]["messages"][0]["content"][0]["image_url"]["url"]
    arrived = np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert torch.equal(torch.from_numpy(arrived).permute(2, 0, 1) / 255, shown[0])


def fewer(answer):
    return answer | {"choices": answer["choices"][1:]}


def without(field):
    def spoil(answer):
        return answer | {"choices": [{k: v for k, v in one.items() if k != field} for one in answer["choices"]]}

    return spoil


def changed(**fields):
    return lambda answer: answer | {"choices": [one | fields for one in answer["choices"]]}


WRONG = {
    "busy": 503,
    "fewer captions": fewer,
    "no log-probabilities": without("logprobs"),
    "aborted": changed(finish_reason="abort"),
    "empty log-probabilities": changed(logprobs={"content": []}),
    "an error for an answer": lambda answer: {"object": "error"},
}


@pytest.mark.parametrize("trouble", WRONG.values(), ids=WRONG)
def test_a_server_in_trouble_is_asked_again(encoder, images, serve, tmp_path, trouble):
    # red if an answer of another form is final, or is taken for captions
    server = serve(trouble=[trouble])
    said = VllmEngine(server.url, str(tmp_path)).write(encoder, images[:1], **HOW)
    assert len(said.texts) == 3 and len(server.asked("completions")) == 3  # the probe, and twice


def test_a_server_that_is_away_or_slow_ends_in_one_error(encoder, images, serve, tmp_path):
    # red if it is waited for without an end, or nobody says what is to be done
    url = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(RaisedTogether, match=rf"VllmEngine: {url}/load_lora_adapter, 2 attempts: .*refused.*--resume"):
        VllmEngine(url, str(tmp_path / "away"), attempts=2).write(encoder, images[:1], **HOW)
    server = serve(trouble=[lambda answer: 1.0] * 9)
    engine = VllmEngine(server.url, str(tmp_path / "slow"), attempts=2)
    engine.endpoints["chat/completions"][0].timeout = 0.5
    with pytest.raises(RaisedTogether, match="chat/completions, 2 attempts: no answer within 0.5 s.*--resume"):
        engine.write(encoder, images[:1], **HOW)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda answer: answer | {"prompt_token_ids": answer["prompt_token_ids"][1:]},
            "prompt has .* they differ at 0",
        ),
        (lambda answer: answer | {"prompt_token_ids": [*answer["prompt_token_ids"], 9]}, "they differ at the end"),
        (changed(token_ids=[9], logprobs={"content": [{"logprob": -1.0}]}, finish_reason="length"), "--max-model-len"),
        (changed(token_ids=[9], logprobs={"content": [{"logprob": -1.0}]}, finish_reason="stop"), "generation-config"),
        (changed(token_ids=None), "tells no token ids.*0.10.2"),
    ],
)
def test_a_server_that_will_never_do_is_told_at_once(encoder, images, serve, tmp_path, spoil, words):
    # red if a mistake is tried again, or trained on
    server = serve(trouble=[spoil])
    with pytest.raises(UsageError, match=words):
        VllmEngine(server.url, str(tmp_path)).write(encoder, images[:1], **HOW)
    assert len(server.asked("completions")) == 2


def test_servers_that_are_not_started_as_they_must_be(encoder, images, serve, tmp_path, monkeypatch):
    # red if log-probabilities of raw logits are taken, or a server without adapters is said to have a wrong URL
    with pytest.raises(UsageError, match="start it with --logprobs-mode processed_logprobs"):
        VllmEngine(serve(raw=True).url, str(tmp_path)).write(encoder, images[:1], **HOW)
    server = serve()
    with pytest.raises(UsageError, match=r"does not load the adapter \(.*Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        VllmEngine(server.url.removesuffix("/v1"), str(tmp_path)).write(encoder, images[:1], **HOW)
    monkeypatch.setattr(server, "load", lambda *_: (500, {"error": {"message": "rank 64 is above max_lora_rank 16"}}))
    with pytest.raises(RaisedTogether, match="rank 64 is above.*--max-lora-rank"):
        VllmEngine(server.url, str(tmp_path), attempts=1).write(encoder, images[:1], **HOW)


def test_an_adapter_that_was_loaded_by_a_lost_answer_is_there(encoder, images, serve, tmp_path, monkeypatch):
    # red if the second attempt's refusal ends the run
    server = serve()
    load, lost = server.load, []

    def lose(name, folder):
        load(name, folder)
        lost.append(name)
        return 502, {}

    monkeypatch.setattr(server, "load", lose)
    assert len(VllmEngine(server.url, str(tmp_path)).write(encoder, images[:1], **HOW).texts) == 3 and len(lost) == 1


def test_a_server_that_was_started_anew_is_given_the_next_adapter(encoder, images, serve, tmp_path):
    # red if an adapter that cannot be unloaded ends the run
    server = serve()
    engine = VllmEngine(server.url, str(tmp_path))
    engine.write(encoder, images[:1], **HOW)
    server.adapters.clear()
    moved(encoder, 1)
    with pytest.warns(UserWarning, match="out of date was not unloaded"):
        assert len(engine.write(encoder, images[:1], **HOW).texts) == 3


RANK = """
import json, sys
import torch, torch.distributed as dist
import uae_lightning
from uae_lightning.engines.vllm import VllmEngine
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.parallel.collectives import RaisedTogether
from uae_lightning.types import LoRA

torch.set_num_threads(1)
torch.manual_seed(0)
rank, cases, weights, options, folder = int(sys.argv[1]), *map(json.loads, sys.argv[2:5]), sys.argv[5]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
encoder = QwenVLEncoder(weights, **options)
encoder.adapt(LoRA(rank=4, alpha=8))
images = torch.full((1, 3, 96, 96), 0.2 + 0.4 * rank)
for urls in cases:
    engine = VllmEngine(urls, f"{folder}/adapters", attempts=1)
    try:
        for step in range(2):
            with torch.no_grad():
                for parameter in encoder.handed_on():
                    parameter.add_(0.1)
            said = engine.write(encoder, images, samples=2, temperature=1.0, max_new_tokens=3, seed=rank)
        logp, _ = encoder.token_logprobs(encoder.see(images), said, temperature=1.0)
        print(json.dumps({"apart": (logp - said.logp)[said.mask].abs().max().item(), "name": engine.name}))
    except RaisedTogether as error:
        print(json.dumps({"error": str(error)}))
dist.barrier()
"""


def test_two_ranks_ask_one_server_or_each_its_own(serve, parts_folder, tmp_path):
    # red if both ranks load the adapter, or none of them into the second server; if they name it differently; or if a
    # rank whose server is away leaves the other waiting
    server, one, two = serve(), serve(), serve()
    away = f"http://127.0.0.1:{closed_port()}/v1"
    cases = [[server.url], [one.url, two.url], [one.url, away]]
    words = [json.dumps(cases), json.dumps(str(parts_folder / "encoder")), json.dumps(SCENES_PROMPTS), str(tmp_path)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    lines = [rank.communicate(timeout=900)[0].splitlines()[-3:] for rank in ranks]
    together, each, failed = ([json.loads(line) for line in pair] for pair in zip(*lines, strict=True))
    assert all(rank["apart"] < 1e-4 for rank in [*together, *each])
    assert together[0]["name"] == together[1]["name"] and each[0]["name"] == each[1]["name"]
    # a probe of the server's first adapter, and two requests of each rank that asks there
    for asked, loads, requests in ((server, 2, 1 + 4), (one, 3, 2 + 2), (two, 2, 1 + 2)):
        assert (len(asked.asked("/load_lora_adapter")), len(asked.asked("completions"))) == (loads, requests)
    assert "another rank has no answer" in failed[0]["error"] and "refused" in failed[1]["error"]
