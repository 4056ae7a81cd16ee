"""The benchmark of decoder objectives: equal time, two judges, paired differences, and nothing trained twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from staged import staged

from benchmarks import decoder_objectives as bench
from benchmarks import objectives_table as results
from benchmarks.measure import Lap
from uae_lightning.autoencoder import Captioning
from uae_lightning.evaluation.geneval import TASKS
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.object_detector import SceneObjectDetector
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.types import Learn, LoRA, Sampling
from uae_lightning.usage import UsageError

CPU = torch.device("cpu")
SIZES = {"group_size": 2, "micro_batch": 4, "captioning": Captioning(1.0, 6), "sampling": Sampling(2)}
BEFORE = {"colors": [1.0, 1.0], "counting": [0.0, 1.0, 0.0, 0.0]}


def training(name, seed, ends, start=(0.5, 0.5), settings=None, after=BEFORE, own_sampler=()):
    rows = [bench.Row(0.0, 0, list(start)), bench.Row(10.0, 5, list(ends))]
    return bench.Training(name, seed, settings or {}, rows, [BEFORE, after], list(own_sampler))


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(kind, **options):
        learn = Learn(decoder=LoRA(rank=4, alpha=8))
        return staged(kind, make_encoder(), make_projector(), make_decoder(), learn=learn, **SIZES, **options)

    return make


@pytest.fixture
def data():
    return ScenesData(batch_size=2, validation_pictures=3, validation_batch_size=3)


def test_validations_come_after_equal_parts_of_the_time(make_stage, data, monkeypatch):
    # red if `point / points` becomes `point`, `range(points + 1)` loses its + 1, or validation is timed as well
    stage = make_stage(DecoderMatching)
    monkeypatch.setattr(bench, "timed", lambda run, device: run() or Lap(1.0, 2.0))
    step = bench.step_of(bench.ARMS["nft"], stage)
    rows = list(bench.learn(stage, data, PixelSimilarity(), step, seconds=9, points=2, device=CPU))
    assert [(row.seconds, row.step) for row in rows] == [(0, 0), (6, 3), (10, 5)]
    assert int(stage.batches_seen) == 5 and all(len(row.reward) == 3 for row in rows)
    assert rows[0].reward != rows[2].reward  # it learns


def test_the_published_loop_trains_the_stage_on_captions_that_the_stage_samples(make_stage, data, monkeypatch):
    # red if `captions.texts` becomes `batch.captions`, the group's size another, or `arm.plain` is not looked at
    stage, seen = make_stage(DecoderRL, window=(0, 1)), []
    write, step_once = stage.autoencoder.write, bench.PlainFlowGRPO.step

    def step(plain, captions, originals, reward, generator):
        seen.append((captions, len(originals), plain.group_size, plain.settings.steps))
        return step_once(plain, captions, originals, reward, generator)

    said = []
    monkeypatch.setattr(stage.autoencoder, "write", lambda *args: said.append(write(*args)) or said[-1])
    monkeypatch.setattr(bench.PlainFlowGRPO, "step", step)
    monkeypatch.setattr(bench, "timed", lambda run, device: run() or Lap(1.0, 1.0))
    arm = bench.Arm("", "", plain=replace(bench.PUBLISHED, steps=2, window=(0, 1)))
    step_on = bench.step_of(arm, stage)
    before = [parameter.clone() for parameter in stage.parameters() if parameter.requires_grad]
    next(rows := bench.learn(stage, data, PixelSimilarity(), step_on, seconds=1, points=1, device=CPU))
    said.clear()  # of the validation
    next(rows)
    assert seen == [(said[0].texts, 2, 2, 2)]
    after = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_both_judges_see_the_weights_before_and_after(make_stage, data, monkeypatch):
    # red if `before` is judged after the training, `* arm.times` goes, or `own` is not handed to `validate`
    stage, samplers, moments = make_stage(DecoderRL, window=(0, 1)), [], []
    model, reconstruct = stage.autoencoder, stage.autoencoder.reconstruct
    monkeypatch.setattr(model, "reconstruct", lambda *a, **b: samplers.append(model.sampling) or reconstruct(*a, **b))
    monkeypatch.setattr(bench, "build", lambda *_: (stage, data))
    monkeypatch.setattr(bench, "timed", lambda run, device: run() or Lap(1.0, 1.0))
    monkeypatch.setattr(bench.PlainFlowGRPO, "step", lambda *_: 0.0)
    geneval = lambda stage: moments.append(int(stage.batches_seen)) or {"colors": [moments[-1]]}  # noqa: E731
    judges, own = SimpleNamespace(reward=PixelSimilarity(), geneval=geneval), replace(bench.PUBLISHED, steps=3)
    options = SimpleNamespace(run=Path("run"), seconds=1, points=1, pictures=3)

    monkeypatch.setitem(bench.ARMS, "published", bench.Arm("", "", plain=own, times=2))
    found = bench.train_arm("published", 0, {}, judges, options, CPU)
    assert found.geneval == [{"colors": [0]}, {"colors": [2]}]
    assert [row.step for row in found.rows] == [0, 1, 2]
    assert samplers == [Sampling(3, 4.5), Sampling(2), Sampling(2), Sampling(2), Sampling(3, 4.5)]
    assert [len(rewards) for rewards in found.own_sampler] == [3, 3]

    monkeypatch.setitem(bench.ARMS, "published", bench.Arm("", ""))
    assert bench.train_arm("published", 0, {}, judges, options, CPU).own_sampler == [[], []]


def test_geneval_is_judged_as_by_uae_evaluate(monkeypatch):
    # red if the seed of the Subject is another, or the YAML of the judges is
    judges, asked = bench.judges_on(CPU), []
    suite = judges.evaluation.suites["geneval_unguided"]
    monkeypatch.setattr(suite, "measure", lambda subject: asked.append((subject.model, subject.seed)) or {})
    stage = SimpleNamespace(autoencoder="model")
    assert judges.geneval(stage) == {} and asked == [("model", 0)]
    wanted = suite.prompts(judges.evaluation.drawings, 0)
    assert [prompt.task for prompt in wanted] == 40 * list(TASKS)
    assert isinstance(suite.detector, SceneObjectDetector)


def test_gains_are_compared_seed_by_seed_and_picture_by_picture():
    # red if `less` adds, if before and after change places, or if seeds are matched by their order
    own = [training("nft", 2, (0.8, 0.6)), training("nft", 0, (0.7, 0.5))]
    others = [training("cps", 0, (0.6, 0.4)), training("cps", 1, (0.9, 0.9)), training("cps", 2, (0.7, 0.5))]
    found = results.compared(own, others)
    assert found["seeds"] == 2 and found["n"] == 2
    assert found["mean"] == pytest.approx(0.1) and found["low"] == pytest.approx(0.1)
    assert results.compared(own, others[1:2]) is None
    assert results.gains(own)[0] == pytest.approx([0.3, 0.1])


def test_geneval_changes_prompt_by_prompt_and_every_task_weighs_the_same():
    # red if before and after change places, or all prompts are one group
    after = {"colors": [1.0, 0.0], "counting": [0.0, 0.0, 1.0, 1.0]}
    found = results.geneval_change([training("nft", 0, (0.5, 0.5), after=after), training("nft", 1, (0.5, 0.5))])
    assert found["mean"] == pytest.approx((-0.5 + 0.25) / 2 / 2)  # tasks, then seeds, of which one has not changed
    assert (found["n"], found["seeds"]) == (6, 2)


WORSE = {task: [0.0] * len(values) for task, values in BEFORE.items()}
MORE, MOST = (0.8, 0.8), (0.9, 0.9)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"nft": {"ends": MORE}, "awm": {"ends": MOST}}, "awm"),
        ({"nft": {"ends": MORE}, "awm": {"ends": MOST, "after": WORSE}}, "nft"),
        ({"awm": {"ends": (0.4, 0.9)}}, "cps"),  # more on average, but not on every picture
        ({"awm": {"ends": MOST, "seeds": 2}}, "cps"),
        ({"published": {"ends": MOST}}, "cps"),
    ],
    ids=["highest gain", "GenEval falls", "interval holds 0", "two seeds", "no candidate"],
)
def test_the_default_is_chosen_by_the_rule(arms, expected):
    # red if max becomes min, `low` high, `>= 0` of GenEval goes, NEEDED_SEEDS is 2, or `published` is a candidate
    found = {"cps": [training("cps", seed, (0.6, 0.6)) for seed in range(3)]}
    for name, arm in arms.items():
        seeds, after = range(arm.get("seeds", 3)), arm.get("after", BEFORE)
        found[name] = [training(name, seed, arm["ends"], after=after) for seed in seeds]
    assert results.winner(found) == expected


def test_the_table_shows_every_seed_and_the_difference_to_the_baseline():
    # red if the baseline is compared with itself, the curve starts at the first row, or GenEval's column goes
    found = {"cps": [training("cps", 0, (0.7, 0.5))], "nft": [training("nft", 0, (0.8, 0.6), after=WORSE)]}
    head, cps, nft = results.table(found).split("\n")
    assert head.split("  ")[-1] == "GenEval" and "less that of cps" in head
    assert cps.split()[:4] == ["cps", "5", "2.0", "+0.1000"]
    assert cps.count("[") == 2 and cps.endswith(" +0.000 [+0.000, +0.000]")
    assert "+0.1000 [+0.1000, +0.1000]" in nft and "-0.625 [" in nft
    assert "nft" in results.chart(found)


def test_the_last_lines_set_the_default_against_the_published_loop():
    # red if the sides of `compared` change places, seeds are not those of both, or before and after of the own sampler
    cps = [training("cps", seed, (0.8, 0.8)) for seed in range(3)]
    published = [training("published", 1, (0.6, 0.6), own_sampler=[[0.3, 0.3], [0.4, 0.4]])]
    rule, speed, own = results.conclusions({"cps": cps, "published": published})
    assert rule == "default by the rule: cps"
    assert speed == (
        "cps after 10 s: +0.3000; published after 10 s: +0.1000, difference +0.2000 [+0.2000, +0.2000], seeds: 1"
    )
    assert own == "published under its own sampler: 0.3000 -> 0.4000, change +0.1000 [+0.1000, +0.1000]"
    (rule,) = results.conclusions({"cps": cps[:2]})
    assert "needs 3 seeds" in rule


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch):
    # red if `training is None` is turned round, the file is not written, or settings are not compared
    run, made = tmp_path / "run", []
    for folder in ("pretrain/weights/decoder", "rl/weights/decoder"):
        (run / folder).mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"stages": ["pretrain", "rl"]}))

    def train_arm(name, seed, weights, judges, options, device):
        made.append((name, seed))
        assert weights == {"decoder": run / "pretrain/weights/decoder"}  # what the last stage started from
        return training(name, seed, (0.6, 0.7), settings=bench.settings_of(bench.ARMS[name], options))

    monkeypatch.setattr(bench, "train_arm", train_arm)
    monkeypatch.setattr(bench, "judges_on", lambda device: None)
    args = ["--run", str(run), "--output", str(tmp_path / "out"), "--json", str(tmp_path / "all.json")]
    bench.main([*args, "--arms", "nft", "--seeds", "0"])
    bench.main([*args, "--arms", "cps", "nft", "--seeds", "0", "1"])
    assert made == [("nft", 0), ("cps", 0), ("cps", 1), ("nft", 1)]
    assert len(json.loads((tmp_path / "all.json").read_text())["nft"]) == 2
    assert (tmp_path / "out/curves.svg").read_text().startswith("<svg")
    with pytest.raises(UsageError, match="other settings"):
        bench.main([*args, "--arms", "nft", "--seeds", "0", "--seconds", "7"])


@pytest.mark.parametrize("name", [name for name, arm in bench.ARMS.items() if arm.options])
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
