"""The benchmark of decoder objectives: equal time, paired differences, and nothing trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import decoder_objectives as bench
from benchmarks.measure import Lap
from uae_lightning.data.scenes_data import ScenesData
from uae_lightning.models.adapters import LoRA
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.stage_cli import parse_stage
from uae_lightning.stages.common import Captioning, Sampling
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.usage import UsageError

CPU = torch.device("cpu")


def training(name, seed, ends, start=(0.5, 0.5), settings=None):
    rows = [bench.Row(0.0, 0, list(start)), bench.Row(10.0, 5, list(ends))]
    return bench.Training(name, seed, settings or {}, rows)


def test_validations_come_after_equal_parts_of_the_time(make_encoder, make_projector, make_decoder, monkeypatch):
    # red if `point / points` becomes `point`, `range(points + 1)` loses its + 1, or validation is timed as well
    decoder = make_decoder(train="lora", lora=LoRA(rank=4, alpha=8))
    sizes = {"group_size": 2, "micro_batch": 4, "captioning": Captioning(1.0, 6), "sampling": Sampling(2)}
    stage = DecoderMatching(make_encoder(), make_projector(), decoder, **sizes)
    data = ScenesData(batch_size=2, validation_pictures=3, validation_batch_size=3)
    monkeypatch.setattr(bench, "timed", lambda run, device: run() or Lap(1.0, 2.0))
    rows = list(bench.learn(stage, data, PixelSimilarity(), seconds=9, points=2, device=CPU))
    assert [(row.seconds, row.step) for row in rows] == [(0, 0), (6, 3), (10, 5)]
    assert int(stage.batches_seen) == 5 and all(len(row.reward) == 3 for row in rows)
    assert rows[0].reward != rows[2].reward  # it learns


def test_gains_are_compared_seed_by_seed_and_picture_by_picture():
    # red if a - b becomes a + b, if before and after change places, or if seeds are matched by their order
    own = [training("nft", 2, (0.8, 0.6)), training("nft", 0, (0.7, 0.5))]
    others = [training("cps", 0, (0.6, 0.4)), training("cps", 1, (0.9, 0.9)), training("cps", 2, (0.7, 0.5))]
    found = bench.compared(own, others)
    assert found["seeds"] == 2 and found["n"] == 2
    assert found["mean"] == pytest.approx(0.1) and found["low"] == pytest.approx(0.1)
    assert bench.compared(own, others[1:2]) is None
    assert bench.gains(own)[0] == pytest.approx([0.3, 0.1])


def test_the_table_shows_every_seed_and_the_difference_to_the_baseline():
    # red if the baseline is compared with itself, or the curve starts at the first row
    found = {"cps": [training("cps", 0, (0.6, 0.4))], "nft": [training("nft", 0, (0.8, 0.6))]}
    head, cps, nft = bench.table(found).split("\n")
    assert head.endswith("less that of cps")
    assert cps.split()[:4] == ["cps", "5", "2.0", "+0.0000"] and cps.endswith("+0.0000")
    assert nft.endswith("+0.2000 [+0.2000, +0.2000]")
    assert "nft" in bench.chart(found)


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch):
    # red if `training is None` is turned round, the file is not written, or settings are not compared
    run, made = tmp_path / "run", []
    for folder in ("pretrain/weights/decoder", "rl/weights/decoder"):
        (run / folder).mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"stages": ["pretrain", "rl"]}))

    def train_arm(name, seed, weights, reward, options, device):
        made.append((name, seed))
        assert weights == {"decoder": run / "pretrain/weights/decoder"}  # what the last stage started from
        return training(name, seed, (0.6, 0.7), settings=bench.settings_of(bench.ARMS[name], options))

    monkeypatch.setattr(bench, "train_arm", train_arm)
    monkeypatch.setattr(bench, "PerceptualGrid", PixelSimilarity)
    args = ["--run", str(run), "--output", str(tmp_path / "out"), "--json", str(tmp_path / "all.json")]
    bench.main([*args, "--arms", "nft", "--seeds", "0"])
    bench.main([*args, "--arms", "cps", "nft", "--seeds", "0", "1"])
    assert made == [("nft", 0), ("cps", 0), ("cps", 1), ("nft", 1)]
    assert len(json.loads((tmp_path / "all.json").read_text())["nft"]) == 2
    assert (tmp_path / "out/curves.svg").read_text().startswith("<svg")
    with pytest.raises(UsageError, match="other settings"):
        bench.main([*args, "--arms", "nft", "--seeds", "0", "--seconds", "7"])


@pytest.mark.parametrize("name", bench.ARMS)
def test_the_options_of_every_arm_exist(name):
    # red if an option of an arm is misspelt, or a stage loses one
    arm = bench.ARMS[name]
    options = [f"--model.init_args.{option}" for option in arm.options]
    cli = parse_stage(["fit", f"--config={bench.CONFIGS / arm.config}.yaml", *options])
    assert cli.config.fit.model.class_path.endswith("Matching" if name in ("nft", "awm") else "RL")


def test_wrong_options_are_named(tmp_path):
    # red if a check goes
    with pytest.raises(UsageError, match="--points"):
        bench.main(["--points", "0"])
    (tmp_path / "run.json").write_text('{"stages": []}')
    with pytest.raises(UsageError, match="no decoder's weights"):
        bench.main(["--run", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        bench.main(["--run", str(Path("conf"))])
