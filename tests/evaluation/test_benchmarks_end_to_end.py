"""`uae evaluate` with the suites that ask a judge, a fake one on the loopback, and files of ours."""

from __future__ import annotations

import json
import re
import zlib

import benchmark_rows as rows
import pytest
import yaml
from conftest import SCENES_PROMPTS
from fake_endpoint import Fake, says, text_in, tokens

from uae_lightning.cli import main
from uae_lightning.remote import endpoint
from uae_lightning.run import folder as run_folder
from uae_lightning.scenes.scene import IMAGE_SIZE

CHAT = "uae_lightning.rewards.openai_chat.OpenAIChat"
SUITES = {
    "dpg": ("dpg_bench.DPGBench", rows.write_dpg),
    "geneval2": ("geneval2.GenEval2", rows.write_geneval2),
    "wise": ("wise.WISE", rows.write_wise),
    "wise_verified": ("wise.WISEVerified", rows.write_wise),
    "unigenbench": ("unigenbench.UniGenBench", rows.write_unigenbench),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def judge(request: dict) -> dict:
    """Answers what it is asked, the same for the same request: by a checksum of it."""
    text, luck = text_in(request), zlib.crc32(json.dumps(request["messages"]).encode())
    if request.get("logprobs"):
        likely = 0.3 + luck % 100 / 200
        return tokens(Yes=likely, four=likely / 2, two=likely / 4)
    if "Score: N" in text:
        return says(f"Score: {luck % 2}")
    if "Consistency: N" in text:
        return says(f"Consistency: {luck % 3}\nRealism: {luck % 2}\nAesthetic Quality: 1")
    if count := re.search(r"such as \[1, 0, 1\]: (\d+) in all", text):
        return says(str([luck >> place & 1 for place in range(int(count[1]))]))
    if "First:" in text:
        return says(f"First: [{1 + luck % 10}, 5, 5]\nSecond: [5, 5, {1 + luck % 7}]")
    return says(("No.", "Yes.")[luck % 2])


@pytest.fixture(scope="module")
def stage(parts_folder, tmp_path_factory):
    """A stage whose parts have random weights, and a file of captions of its held-out pictures."""
    folder = tmp_path_factory.mktemp("conf")
    encoder = {"path": str(parts_folder / "encoder"), **SCENES_PROMPTS}
    decoder = {"path": str(parts_folder / "decoder"), "resolution": IMAGE_SIZE, "sigma_spacing": "even"}
    parts = {
        "encoder": {"class_path": "uae_lightning.models.qwen_vl.QwenVLEncoder", "init_args": encoder},
        "projector": {
            "class_path": "uae_lightning.models.projector.MLPProjector",
            "init_args": {"path": str(parts_folder / "projector")},
        },
        "decoder": {"class_path": "uae_lightning.models.sd3.SD3Decoder", "init_args": decoder},
        "captioning": {"max_new_tokens": 8},
        "sampling": {"steps": 1},
    }
    stage = {
        "model": {
            "class_path": "uae_lightning.stages.decoder_pretrain.DecoderPretrain",
            "init_args": {"autoencoder": parts},
        },
        "data": {"class_path": "uae_lightning.scenes.data.ScenesData"},
        "trainer": {"max_steps": 1},
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))
    return folder / "stage.yaml"


def evaluation(folder, url: str, **more) -> str:
    """A YAML with all the suites."""
    chat = {"class_path": CHAT, "init_args": {"url": f"{url}/v1", "model": "judge", "attempts": 2} | more}
    suites = {}
    for name, (path, write) in SUITES.items():
        benchmark = {"class_path": f"uae_lightning.evaluation.{path}"}
        benchmark["init_args"] = {"path": str(write(folder / f"{name}.txt"))}
        suites[name] = {
            "class_path": "uae_lightning.evaluation.judged_prompts.JudgedPrompts",
            "init_args": {"benchmark": benchmark, "judge": chat, "sampling": {"steps": 1, "guidance": 2.0}},
        }
    suites["pairwise_captions"] = {
        "class_path": "uae_lightning.evaluation.pairwise_captions.PairwiseCaptions",
        "init_args": {"judge": chat},
    }
    data = {"class_path": "uae_lightning.scenes.data.ScenesData", "init_args": {"split": "test"}}
    data["init_args"] |= {"validation_pictures": 4, "validation_batch_size": 4}
    (folder / "evaluation.yaml").write_text(
        yaml.safe_dump({"data": data, "suites": suites, "samples": 4, "drawings": 6, "batch_size": 4}, sort_keys=False)
    )
    return str(folder / "evaluation.yaml")


def call(stage, judges: str, output, *more: str) -> int:
    return main(["evaluate", f"--config={stage}", f"--evaluation={judges}", f"--output={output}", *more])


def test_all_figures_come_from_the_judge(stage, tmp_path, monkeypatch, capsys):
    # red if a benchmark cannot be named in a YAML, the key is written down, or figures change by the order of answers
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    records = []
    for number in (1, 2):
        with Fake(judge) as fake:
            output = tmp_path / f"out{number}.json"
            assert call(stage, evaluation(tmp_path, fake.url, api_key_env="JUDGE_KEY"), output) == 0
            assert {headers["Authorization"] for headers in fake.headers} == {"Bearer secret-key"}
            written = output.read_text()
            assert "secret-key" not in written + json.dumps(fake.requests)
            records.append((json.loads(written), json.loads(run_folder.items_of(output).read_text())))
    (record, items), (_, again) = records
    assert items == again and list(record["figures"]) == [*SUITES, "pairwise_captions"]
    counts = {name: len(items[name].get("overall", items[name].get("win"))) for name in items if name != "unigenbench"}
    assert counts == {"dpg": 6, "geneval2": 2, "wise": 3, "wise_verified": 3, "pairwise_captions": 4}
    assert record["suites"]["unigenbench"]["statistics"]["overall"]["kind"] == "tasks"
    assert record["suites"]["dpg"]["statistics"]["unread"]["better"] == -1
    assert set(items["pairwise_captions"]["tie"]) == {1.0}  # no run trained another encoder
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("soft_tifa_am", "attribute_quantity", "win_rate"))


def test_mistakes_end_in_one_message(stage, tmp_path, monkeypatch, capsys):
    # red if they are found out after pictures were drawn, are tracebacks, or name no remedy
    with Fake(judge) as fake:
        judges = evaluation(tmp_path, fake.url)
    output = tmp_path / "out.json"
    said = lambda: capsys.readouterr().err.strip().splitlines()[-1]  # noqa: E731
    assert call(stage, judges, output, "--suite", "wise_verified") == 2 and "start the server" in said()
    (tmp_path / "dpg.txt").unlink()
    assert call(stage, judges, output) == 2
    message = said()
    assert "put dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA there" in message
    assert call(stage, judges, output, "--without", "dpg") == 2 and "start the server" in said()
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert call(stage, evaluation(tmp_path, fake.url, api_key_env="JUDGE_KEY"), output) == 2
    assert "there is no environment variable JUDGE_KEY: export it" in said() and not output.exists()
    text = (tmp_path / "evaluation.yaml").read_text().replace("benchmark:", "benchmrak:")
    (tmp_path / "evaluation.yaml").write_text(text)
    assert call(stage, judges, output) != 0 and "benchmrak" in said()
