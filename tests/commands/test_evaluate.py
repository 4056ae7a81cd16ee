"""`uae evaluate` from end to end on models with random weights, and gains between two evaluations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SCENES_PROMPTS

from uae_lightning.autoencoder import Captioning
from uae_lightning.cli import main
from uae_lightning.evaluation import table
from uae_lightning.evaluation.geneval import TASKS
from uae_lightning.evaluation.image_health import STATISTICS, ImageHealth
from uae_lightning.evaluation.statistics import Statistic, compare
from uae_lightning.evaluation.suite import Subject, evaluate
from uae_lightning.files import write_json
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.run import compiled
from uae_lightning.run import evaluation as evaluating
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import StageRun, parse_evaluation
from uae_lightning.run.spec import EvaluationSpec, StageSpec
from uae_lightning.scenes.perception import STATED, Perception
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Sampling

ROOT = Path(__file__).parents[2]
KINDS = {"class", "color", "size", "position", "count", "background", "small_objects", "overall"}


def stage_yaml(parts):
    encoder = {"path": str(parts / "encoder"), **SCENES_PROMPTS}
    decoder = {"path": str(parts / "decoder"), "resolution": IMAGE_SIZE, "sigma_spacing": "even"}
    reward = {"class_path": "uae_lightning.rewards.pixel_similarity.PixelSimilarity"}
    other = {"class_path": "uae_lightning.scenes.scene_facts.SceneFacts"}
    return {
        "model": {
            "class_path": "uae_lightning.stages.decoder_pretrain.DecoderPretrain",
            "init_args": {
                "autoencoder": {
                    "encoder": {"class_path": "uae_lightning.models.qwen_vl.QwenVLEncoder", "init_args": encoder},
                    "projector": {"class_path": "uae_lightning.models.projector.MLPProjector",
                                  "init_args": {"path": str(parts / "projector")}},
                    "decoder": {"class_path": "uae_lightning.models.sd3.SD3Decoder", "init_args": decoder},
                    "captioning": {"max_new_tokens": 12},
                    "sampling": {"steps": 2},
                },
            },
        },
        "data": {"class_path": "uae_lightning.scenes.data.ScenesData"},
        "trainer": {"max_steps": 1, "callbacks": [
            {"class_path": "callbacks.RewardCallback", "init_args": {"reward": reward, "unrewarded": other}}]},
    }  # fmt: skip


EVALUATION = {
    "data": {
        "class_path": "uae_lightning.scenes.data.ScenesData",
        "init_args": {"split": "test", "validation_pictures": 12, "validation_batch_size": 4},
    },
    "suites": {
        "unified_bench": {
            "class_path": "uae_lightning.evaluation.unified_bench.UnifiedBench",
            "init_args": {"score": {
                "class_path": "uae_lightning.rewards.unified_score.UnifiedScore",
                "init_args": {"backbones": {
                    "detector": {"class_path": "uae_lightning.scenes.detector_features.DetectorFeatures"},
                    "pixels": {"class_path": "uae_lightning.rewards.pixel_similarity.Pixels"},
                }},
            }},
        },
        "geneval": {
            "class_path": "uae_lightning.scenes.geneval.SceneGenEval",
            "init_args": {
                "detector": {"class_path": "uae_lightning.scenes.object_detector.SceneObjectDetector"},
            },
        },
        "perception": {"class_path": "uae_lightning.scenes.perception.Perception"},
        "questions": {"class_path": "uae_lightning.scenes.questions.Questions"},
        "language": {"class_path": "uae_lightning.scenes.grammar.SceneLanguage"},
        "images": {"class_path": "uae_lightning.evaluation.image_health.ImageHealth"},
        "instruments": {"class_path": "uae_lightning.scenes.instruments.Instruments"},
    },
    "samples": 8,
    "drawings": 12,
}  # fmt: skip
SUITES = tuple(EVALUATION["suites"])


@pytest.fixture(scope="module")
def conf(parts_folder, tmp_path_factory):
    """stage.yaml, evaluation.yaml beside it, and run.yaml with one stage."""
    folder = tmp_path_factory.mktemp("conf")
    write = lambda name, content: (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))  # noqa: E731
    write("stage.yaml", stage_yaml(parts_folder))
    write("evaluation.yaml", EVALUATION)
    stage = {"name": "draw", "config": "stage.yaml", "options": {"model.autoencoder.sampling.steps": 3}}
    write("run.yaml", {"name": "tiny", "stages": [stage], "evaluation": "evaluation.yaml"})
    return folder


@pytest.fixture(scope="module")
def trained(parts_folder, tmp_path_factory):
    """A run of two stages: `draw` left another decoder, `see` another encoder."""
    from uae_lightning.models.sd3 import SD3Decoder

    run = tmp_path_factory.mktemp("runs") / "trained"
    decoder = SD3Decoder(str(parts_folder / "decoder"), resolution=IMAGE_SIZE, sigma_spacing="even")
    with torch.no_grad():
        for parameter in decoder.transformer.parameters():
            parameter.mul_(1.5)
    for stage, part in (("draw", "decoder"), ("see", "encoder")):
        (run / stage / "weights" / part).mkdir(parents=True)
        (run / stage / "stage.json").write_text("{}")
    decoder.save(run / "draw" / "weights" / "decoder")
    encoder = run / "see" / "weights" / "encoder"
    for file in (parts_folder / "encoder").iterdir():
        (encoder / file.name).write_bytes(file.read_bytes())
    (run / "run.json").write_text(json.dumps({"stages": ["draw", "see"]}))
    return run


@pytest.fixture(scope="module")
def start(conf, tmp_path_factory):
    """Figures and items of everything, for the weights that the YAML names."""
    output = tmp_path_factory.mktemp("start") / "out.json"
    assert main(["evaluate", f"--config={conf / 'run.yaml'}", f"--output={output}"]) == 0
    return json.loads(output.read_text()), json.loads(run_folder.items_of(output).read_text())


def parts(conf):
    """A stage and what judges it, as objects."""
    config = StageRun(StageSpec("stage", conf / "stage.yaml", {})).config
    spec = EvaluationSpec(conf / "evaluation.yaml", {})
    return compiled.build_autoencoder(config), compiled.build_evaluation(parse_evaluation(spec))


def autoencoder_of(record):
    return record["settings"]["model"]["init_args"]["autoencoder"]["init_args"]


# ------------------------------------------------------------------------------------------------ the command


def test_output_has_the_figures_with_intervals_and_says_where_they_come_from(start):
    # red with any key renamed, or with the reward's name taken from `unrewarded`
    record, items = start
    figures = record["figures"]
    assert tuple(figures) == SUITES and set(figures["unified_bench"]) == {"detector", "pixels", "overall"}
    assert set(figures["geneval"]) == {*TASKS, "overall"} and {"count", "overall"} <= set(figures["questions"])
    assert KINDS | {"hallucination"} <= set(figures["perception"])
    assert {"tokens", "parses", "perplexity", "distinct_2"} <= set(figures["language"])
    assert {"saturation", "edge_density", "color_entropy", "high_frequency"} == set(figures["images"])
    assert {"geneval/overall", "parser", "backbones/pixels/overall"} <= set(figures["instruments"])
    for suite in SUITES:
        for name, interval in figures[suite].items():
            assert set(interval) == {"mean", "low", "high", "n"}, name
            assert interval["low"] - 1e-9 <= interval["mean"] <= interval["high"] + 1e-9 and interval["n"] >= 2, name
    assert record["reward"] == "PixelSimilarity" and record["seed"] == 0 and record["minutes"] > 0
    assert set(record["versions"]) >= {"python", "torch"} and record["command"].startswith("uae evaluate --config")
    assert set(record["machine"]) >= {"cpu", "cores", "torch_threads", "device"} and "git" in record
    assert record["settings"]["evaluation"]["data"]["init_args"]["split"] == "test"
    assert autoencoder_of(record)["sampling"]["steps"] == 3  # the run's option, not the stage's
    assert len(items["unified_bench"]["overall"]) == 8 and sum(len(items["geneval"][task]) for task in TASKS) == 12
    assert all(round(value, 6) == value for of in items.values() for values in of.values() for value in values)


def test_table_shows_every_figure_and_warns_of_weak_judges(start):
    # red with `>` in place of `<` in the warning, or without the judges' accuracy beside a score
    record, _ = start
    text = table.table(record)
    assert all(name in text for name in ("color_attribution", "questions", "perplexity", "small_objects"))
    assert "judge right" in next(line for line in text.splitlines() if "color_attribution" in line)
    weak = text.split("warning: ")[1]
    assert "backbones/pixels" in weak and "parser" not in weak and "floor" not in weak


def test_same_seed_same_values_and_another_seed_other_ones(conf):
    # red with torch.randn without a generator anywhere, or without `seed` in the SeedSequence of round_trip
    stage, evaluation = parts(conf)
    evaluation.samples = 4
    chosen = evaluation.chosen(["unified_bench", "geneval", "images"])
    first, again, other = (evaluate(stage, evaluation, chosen, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert first["unified_bench"] != other["unified_bench"]
    assert first["images"]["saturation/original"] == other["images"]["saturation/original"]  # the same pictures
    fewer, more = (Subject(stage, evaluation.data, samples, 0).round_trip for samples in (6, 8))
    assert torch.equal(fewer.reconstructions[:4], more.reconstructions[:4]) and len(fewer.keys) == 6
    assert fewer.captions.tokens.shape == fewer.captions.mask.shape == (6, fewer.captions.tokens.shape[1])


def test_a_runs_weights_change_values_and_not_items(conf, trained, start, tmp_path):
    # red if --weights is not handed to evaluate_into, or --stage takes the stages after it
    suites = ["--suite", "unified_bench", "language"]
    ask = ["evaluate", f"--config={conf / 'run.yaml'}", "--weights", str(trained), *suites]
    assert main([*ask, f"--output={tmp_path / 'end.json'}"]) == 0
    assert main([*ask, "--stage", "draw", f"--output={tmp_path / 'draw.json'}"]) == 0
    end, draw = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("end", "draw"))
    path = lambda record, part: autoencoder_of(record)[part]["init_args"]["path"]  # noqa: E731
    assert path(end, "encoder").endswith("see/weights/encoder") and path(end, "decoder").endswith(
        "draw/weights/decoder"
    )
    assert path(draw, "encoder") == path(start[0], "encoder") and path(draw, "decoder") == path(end, "decoder")
    assert main([*ask, f"--weights={trained / 'draw'}", f"--output={tmp_path / 'alone.json'}"]) == 0  # as of `uae fit`
    assert json.loads((tmp_path / "alone.json").read_text())["figures"] == draw["figures"]
    items = json.loads((tmp_path / "end.items.json").read_text())
    assert items["unified_bench"] != start[1]["unified_bench"]  # another decoder
    assert items["language"] == start[1]["language"]  # a copy of the encoder says the same and is as likely
    tokens, overall = Statistic(("tokens",)), Statistic(("overall",))
    assert tokens.gain(start[1]["language"], items["language"])["mean"] == 0
    assert overall.gain(start[1]["unified_bench"], items["unified_bench"])["n"] == 8


def test_a_killed_evaluation_leaves_what_was_there(conf, tmp_path, monkeypatch):
    # red with path.write_text in place of write_json, or with the figures written before the values
    output = tmp_path / "out.json"
    arguments = ["evaluate", f"--config={conf / 'stage.yaml'}", "--suite", "images", f"--output={output}"]

    found = {"images": {}}, {"images": {f"{name}{of}": [1.0] * 99 for name in STATISTICS for of in ("", "/original")}}
    monkeypatch.setattr(evaluating, "evaluate", lambda *args, **kwargs: found)

    def killed(path, text, *args, **kwargs):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", killed)
        main(arguments)
    assert list(tmp_path.iterdir()) == []
    writes, real = [], write_json

    def only_once(path, value):
        writes.append(path)
        if len(writes) == 2:
            raise KeyboardInterrupt
        real(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluating, "write_json", only_once)
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["out.items.json"]


def test_what_is_there_counts_as_long_as_the_settings_are_the_same(conf, tmp_path, monkeypatch):
    # red without the comparison of the settings, or of the seed
    calls = []
    monkeypatch.setattr(evaluating, "evaluate", lambda *args, **kwargs: calls.append(1) or ({}, {}))
    monkeypatch.setattr(evaluating, "described", lambda *args: {})
    stage = StageRun(StageSpec("stage", conf / "stage.yaml", {}))
    for options, seed, expected in [({}, 0, 1), ({}, 0, 1), ({"samples": 4}, 0, 2), ({"samples": 4}, 1, 3)]:
        judges = parse_evaluation(EvaluationSpec(conf / "evaluation.yaml", options))
        evaluating.evaluate_into(
            tmp_path / "out.json", stage, judges, {}, suites=["images"], seed=seed, command="", keep_earlier=True
        )
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "nothing"], ["nothing is not the folder of a run"]),
        (["--weights", "TRAINED", "--stage", "se"], ["no stage 'se'", "did you mean see"]),
        (["--evaluation", "none.yaml"], ["none.yaml does not exist"]),
        (["--config", "over.yaml"], ["over.yaml"]),  # laid over the first
        (["--samples", "13", "--suite", "images"], ["12 held-out pictures", "--samples"]),
    ],
)
def test_mistakes_name_the_option_and_the_remedy(conf, trained, tmp_path, capsys, arguments, words):
    # red without the check in stages_until, or where the data simply ends
    output = tmp_path / "out.json"
    given = [str(trained) if argument == "TRAINED" else argument for argument in arguments]
    assert main(["evaluate", f"--config={conf / 'stage.yaml'}", f"--output={output}", *given]) in (1, 2)
    error = capsys.readouterr().err
    assert all(word in error for word in words) and not output.exists(), error


def test_what_the_data_does_not_allow_is_left_out_and_refused_where_asked_for(conf):
    # red without the look at the data, or without the error
    _, evaluation = parts(conf)
    assert tuple(evaluation.chosen(None)) == SUITES
    evaluation.data = object()
    assert list(evaluation.chosen(None)) == ["unified_bench", "geneval", "language", "images"]
    with pytest.raises(ValueError, match="perception cannot be measured, the data has no scene graphs"):
        evaluation.chosen(["images", "perception"])
    with pytest.raises(ValueError, match="no suite 'image' .*did you mean images"):
        evaluation.chosen(["image"])


def test_own_sampling_is_for_the_evaluation_alone(conf):
    # red without the `finally`
    stage, evaluation = parts(conf)
    seen, real, before = [], stage.draw, stage.captioning
    stage.draw = lambda *args: seen.append((stage.sampling.steps, stage.captioning)) or real(*args)
    evaluation.sampling, evaluation.captioning = Sampling(steps=1), Captioning(0.0, 3)
    evaluation.samples = 4
    evaluate(stage, evaluation, evaluation.chosen(["images"]))
    assert seen == [(1, evaluation.captioning)] and stage.sampling.steps == 2 and stage.captioning is before


def test_backbones_that_share_weights_with_the_reward_are_named():
    # red with the shapes alone as fingerprints, or with `-` in place of `&`
    from uae_lightning.evaluation.unified_bench import UnifiedBench
    from uae_lightning.rewards.perceptual_grid import PooledEfficientNet
    from uae_lightning.rewards.pixel_similarity import Pixels
    from uae_lightning.rewards.unified_score import UnifiedScore

    other = PooledEfficientNet()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    backbones = {"same": PooledEfficientNet(), "other": other, "pixels": Pixels()}
    suites = [ImageHealth(), UnifiedBench(UnifiedScore(backbones))]
    assert evaluating.kin(PerceptualGrid(), suites) == ["same"]
    assert evaluating.kin(None, suites) == []


def test_shipped_settings_parse():
    # red with any key of conf/scenes/evaluation.yaml misspelt
    config = parse_evaluation(EvaluationSpec(ROOT / "conf" / "scenes" / "evaluation.yaml", {"samples": 5}))
    assert config.evaluation.samples == 5 and config.evaluation.data.init_args.split == "test"
    assert len(config.evaluation.suites["unified_bench"].init_args.score.init_args.backbones) >= 3


# ------------------------------------------------------------------------------------------------ gains


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_a_planted_gain_is_found_with_its_sign(shift):
    # red with a - b in place of b - a, or with unpaired intervals, which would include 0
    rng = np.random.default_rng(0)
    before, after = {}, {}
    for name, n in (("pixels", 200), ("overall", 200), ("colors", 40), ("counting", 400)):
        easy = rng.normal(size=n)  # items differ from each other much more than by the shift
        before[name], after[name] = easy.tolist(), (easy + shift + 0.1 * rng.normal(size=n)).tolist()
    statistics = {name: Statistic((name,)) for name in before} | {"tasks": Statistic(("colors", "counting"), "tasks")}
    for name, gain in compare(statistics, statistics, before, after).items():
        assert gain["low"] < shift < gain["high"], name
        assert gain["low"] * gain["high"] > 0 and gain["high"] - gain["low"] < 0.1, name


def test_overall_gain_of_tasks_weighs_tasks_not_prompts():
    # red with all prompts pooled
    before = {"colors": [0.0] * 10, "counting": [0.0] * 90}
    after = {"colors": [1.0] * 10, "counting": [0.0] * 90}
    assert Statistic(("colors", "counting"), "tasks").gain(before, after)["mean"] == 0.5


def test_gain_of_a_ratio_is_that_of_sums():
    # red with the mean of the ratios of single captions
    nothing = {f"{part}/{kind}": [0.0] * 3 for part in ("stated", "false") for kind in STATED}
    before = nothing | {"stated/color": [1.0, 1.0, 2.0], "false/color": [1.0, 0.0, 1.0]}
    after = nothing | {"stated/color": [4.0, 0.0, 4.0], "false/color": [1.0, 0.0, 1.0]}
    statistics = [Perception().statistics(items) for items in (before, after)]
    gains = compare(*statistics, before, after)
    assert gains["precision/color"]["mean"] == pytest.approx(6 / 8 - 2 / 4)
    assert "precision/size" not in gains  # nothing was stated
    before = {name: [1.0, 3.0] for name in STATISTICS} | {f"{name}/original": [2.0, 2.0] for name in STATISTICS}
    after = before | {"saturation": [2.0, 4.0]}
    statistics = ImageHealth().statistics(before)
    gains = compare(statistics, statistics, before, after)
    assert gains["saturation"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2} and gains["edge_density"]["mean"] == 0


def test_perplexity_changes_by_the_change_of_exponentials():
    # red with exp of the mean change
    before, after = ({"nll": [value] * 4} for value in (1.0, 2.0))
    assert Statistic(("nll",), "exp").gain(before, after)["mean"] == pytest.approx(np.e**2 - np.e)


def test_evaluations_of_different_items_are_not_compared():
    # red without the comparison of lengths
    before, tokens = {"tokens": [1.0, 2.0]}, {"tokens": Statistic(("tokens",))}
    for after in ({"tokens": [1.0, 2.0, 3.0]}, {}, {"words": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="different items.*samples"):
            compare(tokens, tokens, before, after)


@pytest.mark.parametrize("kind", ["mean", "ratio", "remainder", "exp", "tasks"])
def test_gains_over_one_seed_are_those_of_the_pair(kind):
    # red with before and after exchanged in _groups
    rng = np.random.default_rng(3)
    before, after = ({"a": rng.uniform(1, 2, 30).tolist(), "b": rng.uniform(0.2, 1, 30).tolist()} for _ in range(2))
    statistic = Statistic(("a",) if kind in ("mean", "exp") else ("a", "b"), kind)
    pair, seeds = statistic.gain(before, after), statistic.gain_over_seeds([before], [after, after])
    assert seeds["mean"] == pytest.approx(pair["mean"]) and seeds["n"] == pair["n"] and seeds["seeds"] == 2
    assert seeds["low"] == pytest.approx(pair["low"], abs=0.1) and seeds["high"] == pytest.approx(pair["high"], abs=0.1)


def test_directions():
    # red with lower_is_better or neither left empty
    suite = Perception()
    names = ("hallucination", "class", "false/color", "stated/color")
    assert [suite.better(name) for name in names] == [-1, 1, -1, 0]
