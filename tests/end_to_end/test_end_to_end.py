"""From a folder of photographs to what other libraries load, by the commands alone; small models of the real classes.

photos -> caption-data -> cache -> run (three stages, two steps each; the first from the cache, without an encoder)
-> export -> foreign code. Pictures are counted at each step, and no count may leave one out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from foreign_data import comfyui
from photographs import CONVERTED, GOOD, OWN_CAPTIONS, SIZE, SKIPPED, save_photographs
from PIL import Image

from uae_lightning.cli import main
from uae_lightning.scenes.scene import IMAGE_SIZE

sys.path.insert(0, str(Path(__file__).parents[1] / "conf"))
from small_models import HIDDEN, TEXT, save_models  # noqa: E402

ROOT = Path(__file__).parents[2]
FOREIGN, FOREIGN_DATA = ROOT / "tests/exchange/foreign.py", Path(__file__).with_name("foreign_data.py")
PROMPT = "a small blue star on the left"  # of foreign.py
PICTURES = GOOD + len(SKIPPED) + 4 + 2  # four to convert, a copy and a held-out one
USED = 60  # pictures that an RL stage trains on: more than there are, so that it meets every file

SMALL = {  # laid over every stage: one size of pictures, the small models, two steps
    "model": {"init_args": {"autoencoder": {
        "projector": {"init_args": {"input_size": HIDDEN, "hidden_size": 16, "output_size": TEXT}},
        "decoder": {"init_args": {"path": "models/sd3", "resolution": 64, "dtype": "float32"}},
        "captioning": {"max_new_tokens": 6},
        "sampling": {"steps": 2},
    }}},
    "data": {"init_args": {"num_workers": 0, "validation_pictures": 4}},
    "trainer": {
        "accelerator": "cpu", "precision": "32-true", "max_steps": 2, "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "callbacks.RewardCallback", "init_args": {
                "reward": {"class_path": "uae_lightning.rewards.clip_similarity.ClipSimilarity",
                           "init_args": {"model": "models/clip"}},
                "unrewarded": {"class_path": "uae_lightning.rewards.dino_similarity.DinoSimilarity",
                               "init_args": {"model": "models/dino"}},
            }},
            {"class_path": "callbacks.SampleGallery"},
            {"class_path": "callbacks.ComponentWeights"},
        ],
    },
}  # fmt: skip
QWEN = {"init_args": {"path": "models/qwen", "dtype": "float32"}}
ENCODER = {"model": {"init_args": {"autoencoder": {"encoder": QWEN}}}}
PHOTOS = {"data": {"init_args": {"path": "photos", "validation_path": "held_out", "resolution": 64}}}
RL = {
    "model.init_args.group_size": 2, "model.init_args.micro_batch": USED, "data.init_args.batch_size": USED // 2,
    "trainer.val_check_interval": 2,
}  # fmt: skip


def write_confs() -> None:
    for name, content in {"small": SMALL, "sees": ENCODER | PHOTOS, "run": run_yaml()}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))


def run_yaml() -> dict:
    def stage(name: str, real: list[str], small: list[str], options: dict) -> dict:
        configs = [str(ROOT / "conf/real" / f"{overlay}.yaml") for overlay in (name, *real)]
        return {"name": name, "config": [*configs, *small], "options": options}

    cached = {"data.init_args.path": "cache", "trainer.val_check_interval": 16}  # 16 batches of 4: 64 samples
    learns = {"model.init_args.optimizer.init_args.lr": 0.01}
    return {"name": "mine", "stages": [
        stage("decoder_pretrain", ["80gb", "cached", "no_encoder"], ["small.yaml"], cached),
        stage("encoder_rl", ["80gb"], ["small.yaml", "sees.yaml"], RL | learns),
        stage("decoder_rl", ["80gb"], ["small.yaml", "sees.yaml"], RL | {"model.init_args.window": [0, 2]}),
    ]}  # fmt: skip


CAPTION_DATA = [
    "caption-data", "--from=photos", "--to=captioned", "--model=shipped:scenes/encoder", "--max-new-tokens=64",
    "--prompt=describe the picture", "--min-words=2", "--max-repetition=1", f"--max-pixels={IMAGE_SIZE**2}",
    "--shard-size=25",
]  # fmt: skip
CACHE = [
    "cache", f"--config={ROOT}/conf/real/decoder_pretrain.yaml", f"--config={ROOT}/conf/real/80gb.yaml",
    "--config=small.yaml", "--config=sees.yaml", "--to=cache",
    '--data.init_args.path=["captioned/*.tar", "own.tar"]',
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder in which all commands were run, one after the other."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_models(Path("models"))
        save_photographs(folder)
        write_confs()
        assert main(CAPTION_DATA) == 0
        assert main(CACHE) == 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main(["run", "--config=run.yaml"]) == 0
        Path("warnings.json").write_text(json.dumps([str(warning.message) for warning in caught]))
        assert main(["export", "--weights=runs/mine", "--to=exported"]) == 0
        assert main(["generate", PROMPT, "--weights=runs/mine", "--seed=3", "--output=generated.png"]) == 0
    return folder


@pytest.fixture(scope="module")
def foreign(place: Path) -> dict:
    """What code without this project found."""
    (place / "exported/models").symlink_to(place / "models")  # the bases are named as the YAMLs name them
    for command in ([FOREIGN, "photos/005.png", "exported"], [FOREIGN_DATA, "."]):
        ended = subprocess.run([sys.executable, "-I", *command], cwd=place, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
    return read(place / "foreign_data.json")


def read(file: Path):
    return json.loads(file.read_text())


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def skipped(file: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in rows(file)}


# ---------------------------------------------------------------------------------------------------- counts


def test_caption_data_accounts_for_every_picture(place: Path):
    # red with "mp4" in data.images.SUFFIXES, `draft` on a broken file taken for a picture, or without "exact duplicate"
    report = read(place / "captioned/report.json")
    assert report["seen"] == PICTURES == report["kept"] + sum((report["dropped"] | report["skipped"]).values())
    assert skipped(place / "captioned/skipped.jsonl") == SKIPPED
    assert report["dropped"]["exact duplicate"] == 1 and report["kept"] >= GOOD
    assert set(report["converted"]) == CONVERTED and report["rewritten"] == 4
    assert len(rows(place / "captioned/captions.jsonl")) == report["kept"]


def test_cache_accounts_for_every_caption(place: Path):
    # red without `max_words` in read_caption, with `self.before` in place of `self.held_out`, or a glob in a list that
    # is not expanded
    report = read(place / "cache/report.json")
    kept = read(place / "captioned/report.json")["kept"]
    assert report["read"] == kept + len(OWN_CAPTIONS)
    assert report["read"] == sum(report[name] for name in ("kept", "duplicates", "held_out", "skipped"))
    assert (report["kept"], report["held_out"], report["duplicates"]) == (kept, 1, 0)  # without leaked.png, with good
    assert skipped(place / "cache/skipped.jsonl") == {
        "own.tar/empty": "empty caption", "own.tar/latin": "caption not in UTF-8", "own.tar/long": "overlong caption",
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["encoder_rl", "decoder_rl"])
def test_the_stages_account_for_every_picture_they_read(stage: str, place: Path):
    # red if a skipped file is not counted, or captions are needed where they are not
    assert skipped(place / "runs/mine" / stage / "skipped.jsonl") == SKIPPED
    [line] = [text for text in read(place / "warnings.json") if f"{stage}/skipped.jsonl" in text]
    read_, used, held_out, left_out = map(
        int, re.search(r"(\d+) read = (\d+) used \+ (\d+) held out \+ (\d+) skipped", line).groups()
    )
    assert read_ == used + held_out + left_out and used == USED + USED // 2  # a batch is read ahead
    assert held_out >= 1 and left_out >= len(SKIPPED)
    assert all(f"{what} (" in line for what in CONVERTED)
    faults = ("empty caption", "caption not in UTF-8", "overlong caption")
    assert all(f"without its {fault} (" in line for fault in faults)


def test_stage_1_reads_the_cache_and_nothing_else(place: Path):
    # red without `cached.yaml` in run_yaml, or with `str(value)` for None in run_spec.fit_args
    config = yaml.safe_load((place / "runs/mine/decoder_pretrain/config.yaml").read_text())
    assert (
        config["model"]["init_args"]["autoencoder"]["init_args"]["encoder"] is None
        and config["data"]["init_args"]["path"] == "cache"
    )
    assert config["data"]["class_path"].endswith("CachedData")
    assert not (place / "runs/mine/decoder_pretrain/skipped.jsonl").exists()


def test_the_gain_of_the_run_is_of_the_stages_that_share_their_pictures(place: Path):
    # red with `done[0]` in place of `compared[0]` in run_summary.summarise
    summary = read(place / "runs/mine/summary.json")
    assert [stage["name"] for stage in summary["stages"]] == ["decoder_pretrain", "encoder_rl", "decoder_rl"]
    assert summary["run"]["since"] == "encoder_rl" and summary["run"]["gain"]["n"] == 4
    assert "Not among the pictures" in (place / "runs/mine/report.html").read_text()


# ---------------------------------------------------------------------------------------------------- foreign code


def test_foreign_code_reads_the_captions_and_the_cache(foreign: dict, place: Path):
    # red if a caption goes with another picture, a shard is not closed, or EXIF is kept in a turned picture
    listed = {row["name"]: row for row in rows(place / "captioned/captions.jsonl")}
    assert {name: [key, text] for name, (key, text, _) in foreign["shards"].items()} == {
        name: [row["key"], row["caption"]] for name, row in listed.items()
    }
    assert {tuple(size) for _, _, size in foreign["shards"].values()} == {SIZE, SIZE[::-1]}  # one was turned
    assert [found for found in foreign["rows"] if not found[2]] == [] and len(foreign["rows"]) == len(listed)
    captions = {key.split("/")[1]: caption for key, caption, _, _ in foreign["cache"]}
    leaked = next(name for name, row in listed.items() if row["key"] == "leaked.png")
    wanted = {name: row["caption"] for name, row in listed.items() if name != leaked}
    assert captions == wanted | {"good": OWN_CAPTIONS["good"].decode()}
    assert all(latents == [16, 8, 8] and states[1] == HIDDEN for _, _, latents, states in foreign["cache"])


def test_foreign_code_draws_what_generate_draws(foreign: dict, place: Path):
    # red with an export of stage 1's decoder alone, or of the encoder before RL
    drawn, wanted = (np.asarray(Image.open(place / name)) for name in ("exported/drawn.png", "generated.png"))
    assert wanted.std() > 5 and np.array_equal(drawn, wanted)
    assert "bit for bit" in (place / "exported/README.md").read_text()


def test_foreign_code_loads_the_adapters(foreign: dict, place: Path):
    # red with `rounds[:1]` in export.lora.History.adapter: the decoder has LoRA of stages 1 and 3
    found = read(place / "exported/foreign.json")
    for part in ("encoder", "decoder"):
        to_merged, base_to_merged = found[part]
        assert to_merged < 1e-4 and base_to_merged > 10 * to_merged, part
    assert found["pipeline"] < 1e-4 and found["caption"]
    assert foreign["comfyui"] == comfyui(place / "exported/comfyui_lora.safetensors") and foreign["comfyui"]
    assert read(place / "exported/settings.json")["origin"]["rounds"]["decoder"].keys() == {
        "decoder_pretrain", "decoder_rl"
    }  # fmt: skip
