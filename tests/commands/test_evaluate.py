"""`uae evaluate` from end to end on models with random weights, and gains between two evaluations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SCENES_PROMPTS

from uae_lightning.cli import main
from uae_lightning.commands import evaluate as command
from uae_lightning.evaluation import suites, table
from uae_lightning.evaluation.gains import compare
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.run import folder as run_folder
from uae_lightning.run.spec import EvaluationSpec, StageSpec
from uae_lightning.scenes.prompts import TASKS
from uae_lightning.stages.common import Sampling

ROOT = Path(__file__).parents[2]
KINDS = {"class", "color", "size", "position", "count", "background", "small_objects", "overall"}


def stage_yaml(parts):
    encoder = {"path": str(parts / "encoder"), **SCENES_PROMPTS}
    decoder = {"path": str(parts / "decoder"), "resolution": 64, "sigma_spacing": "even", "train": "all"}
    reward = {"class_path": "uae_lightning.rewards.pixel_similarity.PixelSimilarity"}
    other = {"class_path": "uae_lightning.scenes.scene_facts.SceneFacts"}
    return {
        "model": {
            "class_path": "uae_lightning.stages.decoder_pretrain.DecoderPretrain",
            "init_args": {
                "encoder": {"class_path": "uae_lightning.models.qwen_vl.QwenVLEncoder", "init_args": encoder},
                "projector": {"class_path": "uae_lightning.models.projector.MLPProjector",
                              "init_args": {"path": str(parts / "projector")}},
                "decoder": {"class_path": "uae_lightning.models.sd3.SD3Decoder", "init_args": decoder},
                "captioning": {"max_new_tokens": 12},
                "sampling": {"steps": 2},
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
    "backbones": {
        "detector": {"class_path": "uae_lightning.scenes.detector_features.DetectorFeatures"},
        "pixels": {"class_path": "uae_lightning.evaluation.unified_bench.Pixels"},
    },
    "detector": {"class_path": "uae_lightning.evaluation.object_detectors.SceneObjectDetector"},
    "samples": 8,
    "drawings": 12,
}


@pytest.fixture(scope="module")
def conf(parts_folder, tmp_path_factory):
    """stage.yaml, evaluation.yaml beside it, and run.yaml with one stage."""
    folder = tmp_path_factory.mktemp("conf")
    write = lambda name, content: (folder / name).write_text(yaml.safe_dump(content))  # noqa: E731
    write("stage.yaml", stage_yaml(parts_folder))
    write("evaluation.yaml", EVALUATION)
    stage = {"name": "draw", "config": "stage.yaml", "options": {"model.init_args.sampling.steps": 3}}
    write("run.yaml", {"name": "tiny", "stages": [stage], "evaluation": "evaluation.yaml"})
    return folder


@pytest.fixture(scope="module")
def trained(parts_folder, tmp_path_factory):
    """A run of two stages: `draw` left another decoder, `see` another encoder."""
    from uae_lightning.models.sd3 import SD3Decoder

    run = tmp_path_factory.mktemp("runs") / "trained"
    decoder = SD3Decoder(str(parts_folder / "decoder"), resolution=64, sigma_spacing="even")
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
    config = command.stage_config(StageSpec("stage", conf / "stage.yaml", {}), [], {})
    spec = EvaluationSpec(conf / "evaluation.yaml", {})
    return command.build_stage(config), command.build_evaluation(command.parse_evaluation(spec))


# ------------------------------------------------------------------------------------------------ the command


def test_output_has_the_figures_with_intervals_and_says_where_they_come_from(start):
    # red with any key renamed, or with the reward's name taken from `unrewarded`
    record, items = start
    assert set(record["unified_bench"]) == {"backbones", "overall"}
    assert set(record["unified_bench"]["backbones"]) == {"detector", "pixels"}
    assert set(record["geneval"]) == {*TASKS, "overall"}
    assert KINDS | {"questions", "hallucination"} <= set(record["perception"])
    assert {"tokens", "parses", "perplexity", "distinct_2"} <= set(record["language"])
    assert {"saturation", "edge_density", "color_entropy", "high_frequency"} == set(record["images"])
    assert {"geneval", "parser", "backbones"} <= set(record["instruments"])
    for suite in table.SUITES:
        for name, interval in table.leaves(record[suite]):
            assert set(interval) == {"mean", "low", "high", "n"}, name
            assert interval["low"] - 1e-9 <= interval["mean"] <= interval["high"] + 1e-9 and interval["n"] >= 2, name
    assert record["reward"] == "PixelSimilarity" and record["seed"] == 0 and record["minutes"] > 0
    assert set(record["versions"]) >= {"python", "torch"} and record["command"].startswith("uae evaluate --config")
    assert set(record["machine"]) >= {"cpu", "cores", "torch_threads", "device"} and "git" in record
    assert record["settings"]["evaluation"]["data"]["init_args"]["split"] == "test"
    assert record["settings"]["model"]["init_args"]["sampling"]["steps"] == 3  # the run's option, not the stage's
    assert len(items["unified_bench"]["overall"]) == 8 and sum(len(items["geneval"][task]) for task in TASKS) == 12
    assert all(round(value, 6) == value for of in items.values() for values in of.values() for value in values)


def test_table_shows_every_figure_and_warns_of_weak_judges(start):
    # red with `>` in place of `<` in the warning, or without the judges' accuracy beside a score
    record, _ = start
    text = table.table(record)
    assert all(name in text for name in ("color_attribution", "questions/overall", "perplexity", "small_objects"))
    assert "judge right" in next(line for line in text.splitlines() if "color_attribution" in line)
    weak = text.split("warning: ")[1]
    assert "backbones/pixels" in weak and "parser" not in weak and "floor" not in weak


def test_same_seed_same_values_and_another_seed_other_ones(conf):
    # red with torch.randn without a generator anywhere, or without `seed` in the SeedSequence of round_trip
    stage, evaluation = parts(conf)
    first, again, other = (
        suites.evaluate(stage, evaluation, seed=seed, samples=4, suites=["unified_bench", "geneval", "images"])[1]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first["unified_bench"] != other["unified_bench"]
    assert first["images"]["saturation/original"] == other["images"]["saturation/original"]  # the same pictures
    fewer = suites.round_trip(stage, evaluation, samples=6, seed=0)
    more = suites.round_trip(stage, evaluation, samples=8, seed=0)
    assert torch.equal(fewer.reconstructions[:4], more.reconstructions[:4]) and len(fewer.keys) == 6
    assert fewer.captions.tokens.shape == fewer.captions.mask.shape == (6, fewer.captions.tokens.shape[1])


def test_a_runs_weights_change_values_and_not_items(conf, trained, start, tmp_path):
    # red if --weights is not handed to fit_args, or --stage takes the stages after it
    ask = [
        "evaluate",
        f"--config={conf / 'run.yaml'}",
        "--weights",
        str(trained),
        "--suite",
        "unified_bench",
        "language",
    ]
    assert main([*ask, f"--output={tmp_path / 'end.json'}"]) == 0
    assert main([*ask, "--stage", "draw", f"--output={tmp_path / 'draw.json'}"]) == 0
    end, draw = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("end", "draw"))
    path = lambda record, part: record["settings"]["model"]["init_args"][part]["init_args"]["path"]  # noqa: E731
    assert path(end, "encoder").endswith("see/weights/encoder") and path(end, "decoder").endswith(
        "draw/weights/decoder"
    )
    assert path(draw, "encoder") == path(start[0], "encoder") and path(draw, "decoder") == path(end, "decoder")
    items = json.loads((tmp_path / "end.items.json").read_text())
    assert items["unified_bench"] != start[1]["unified_bench"]  # another decoder
    assert items["language"] == start[1]["language"]  # a copy of the encoder says the same and is as likely
    gains = compare({suite: start[1][suite] for suite in items}, items)
    assert gains["language"]["tokens"]["mean"] == 0 and gains["unified_bench"]["overall"]["n"] == 8


def test_a_killed_evaluation_leaves_what_was_there(conf, tmp_path, monkeypatch):
    # red with path.write_text in place of run_folder.write_json, or with the figures written before the values
    output = tmp_path / "out.json"
    arguments = ["evaluate", f"--config={conf / 'stage.yaml'}", "--suite", "images", f"--output={output}"]

    monkeypatch.setattr(suites, "evaluate", lambda *args, **kwargs: ({"images": {}}, {"images": {"edges": [1.0] * 99}}))

    def killed(path, text, *args, **kwargs):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", killed)
        main(arguments)
    assert list(tmp_path.iterdir()) == []
    writes, real = [], run_folder.write_json

    def only_once(path, value):
        writes.append(path)
        if len(writes) == 2:
            raise KeyboardInterrupt
        real(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder, "write_json", only_once)
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["out.items.json"]


def test_what_is_there_counts_as_long_as_the_settings_are_the_same(conf, tmp_path, monkeypatch):
    # red without the comparison of the settings, or of the seed
    calls = []
    monkeypatch.setattr(suites, "evaluate", lambda *args, **kwargs: calls.append(1) or ({}, {}))
    stage = StageSpec("stage", conf / "stage.yaml", {})
    for options, seed, expected in [({}, 0, 1), ({}, 0, 1), ({"samples": 4}, 0, 2), ({"samples": 4}, 1, 3)]:
        spec = EvaluationSpec(conf / "evaluation.yaml", options)
        command.evaluate_into(
            tmp_path / "out.json", stage, spec, {}, suites=["images"], seed=seed, command="", keep_earlier=True
        )
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "nothing"], ["nothing is not the folder of a run"]),
        (["--weights", "TRAINED", "--stage", "se"], ["no stage 'se'", "did you mean see"]),
        (["--evaluation", "none.yaml"], ["none.yaml does not exist"]),
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


def test_what_data_and_judges_do_not_allow_is_left_out_and_refused_where_asked_for(conf):
    # red with `or` in place of the look at the data, or without the error
    _, evaluation = parts(conf)
    assert evaluation.chosen(None) == list(table.SUITES)
    evaluation.detector = None
    assert evaluation.chosen(None) == [suite for suite in table.SUITES if suite != "geneval"]
    with pytest.raises(ValueError, match="geneval cannot be measured, there is no `detector`"):
        evaluation.chosen(["images", "geneval"])
    evaluation.data = object()
    assert evaluation.chosen(None) == ["unified_bench", "language", "images"]
    evaluation.suites = ["images"]
    assert evaluation.chosen(None) == ["images"] and evaluation.chosen(["language"]) == ["language"]


def test_own_sampling_is_for_the_evaluation_alone(conf):
    # red without the `finally`
    stage, evaluation = parts(conf)
    seen, real = [], stage.sample_images
    stage.sample_images = lambda *args: seen.append(stage.sampling.steps) or real(*args)
    evaluation.sampling = Sampling(steps=1)
    suites.evaluate(stage, evaluation, suites=["images"], samples=4)
    assert seen == [1] and stage.sampling.steps == 2


def test_backbones_that_share_weights_with_the_reward_are_named():
    # red with the shapes alone as fingerprints, or with `-` in place of `&`
    from uae_lightning.evaluation.unified_bench import Pixels, PooledEfficientNet

    other = PooledEfficientNet()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    backbones = {"same": PooledEfficientNet(), "other": other, "pixels": Pixels()}
    assert command.kin(PerceptualGrid(), backbones) == ["same"]
    assert command.kin(None, backbones) == []


def test_shipped_settings_parse():
    # red with any key of conf/scenes/evaluation.yaml misspelt
    config = command.parse_evaluation(EvaluationSpec(ROOT / "conf" / "scenes" / "evaluation.yaml", {"samples": 5}))
    assert config.evaluation.samples == 5 and config.evaluation.data.init_args.split == "test"
    assert len(config.evaluation.backbones) >= 3


# ------------------------------------------------------------------------------------------------ gains


def planted(rng, shift):
    """Items of two evaluations that differ by `shift` on average, much less than items differ from each other."""
    draw = lambda n: rng.normal(size=n)  # noqa: E731

    def pair(n):
        easy = draw(n)
        return easy.tolist(), (easy + shift + 0.1 * draw(n)).tolist()

    sizes = {"unified_bench": {"pixels": 200, "overall": 200}, "geneval": {"colors": 40, "counting": 400},
             "language": {"tokens": 200}}  # fmt: skip
    pairs = {suite: {name: pair(n) for name, n in of.items()} for suite, of in sizes.items()}
    return [{suite: {name: p[i] for name, p in of.items()} for suite, of in pairs.items()} for i in (0, 1)]


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_a_planted_gain_is_found_with_its_sign(shift):
    # red with a - b in place of b - a, or with unpaired intervals, which would include 0
    before, after = planted(np.random.default_rng(0), shift)
    gains = compare(before, after)
    assert set(gains) == {"unified_bench", "geneval", "language"}
    for name, gain in table.leaves(gains):
        assert gain["low"] < shift < gain["high"], name
        assert gain["low"] * gain["high"] > 0 and gain["high"] - gain["low"] < 0.1, name


def test_overall_gain_of_geneval_weighs_tasks_not_prompts():
    # red with all prompts pooled
    before = {"geneval": {"colors": [0.0] * 10, "counting": [0.0] * 90}}
    after = {"geneval": {"colors": [1.0] * 10, "counting": [0.0] * 90}}
    assert compare(before, after)["geneval"]["overall"]["mean"] == 0.5


def test_gain_of_a_ratio_is_that_of_sums():
    # red with the mean of the ratios of single captions
    kinds = ("class", "color", "size", "position", "background", "count", "relation")
    nothing = {f"{part}/{kind}": [0.0] * 3 for part in ("stated", "false") for kind in kinds}
    before = {
        "perception": nothing | {"stated/color": [1.0, 1.0, 2.0], "false/color": [1.0, 0.0, 1.0]},
        "questions": {},
    }
    after = {"perception": nothing | {"stated/color": [4.0, 0.0, 4.0], "false/color": [1.0, 0.0, 1.0]}, "questions": {}}
    gains = compare(before, after)["perception"]
    assert gains["precision/color"]["mean"] == pytest.approx(6 / 8 - 2 / 4)
    assert "precision/size" not in gains  # nothing was stated
    images = {name: [1.0, 3.0] for name in ("saturation", "high_frequency", "edge_density", "color_entropy")}
    before = {"images": images | {f"{name}/original": [2.0, 2.0] for name in images}}
    after = {"images": before["images"] | {"saturation": [2.0, 4.0]}}
    gains = compare(before, after)["images"]
    assert gains["saturation"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2} and gains["edge_density"]["mean"] == 0


def test_perplexity_changes_by_the_change_of_exponentials():
    # red with exp of the mean change
    before, after = ({"language": {"nll": [value] * 4}} for value in (1.0, 2.0))
    assert compare(before, after)["language"]["perplexity"]["mean"] == pytest.approx(np.e**2 - np.e)


def test_evaluations_of_different_items_are_not_compared():
    # red without the comparison of lengths
    before = {"language": {"tokens": [1.0, 2.0]}}
    for after in ({"language": {"tokens": [1.0, 2.0, 3.0]}}, {"images": {}}, {"language": {"words": [1.0, 2.0]}}):
        with pytest.raises(ValueError, match="different items.*samples"):
            compare(before, after)
