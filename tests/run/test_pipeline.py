import json
import os
import shlex

import pytest
import yaml
from stand_ins import EVALUATION_YAML, write_confs

from uae_lightning.cli import main
from uae_lightning.parallel.locking import locked
from uae_lightning.report import summary as run_summary
from uae_lightning.run import folder as run_folder
from uae_lightning.run import spec as run_spec
from uae_lightning.usage import UsageError


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_confs(tmp_path)
    (run.parent / "evaluation.yaml").write_text(EVALUATION_YAML)
    run.write_text(run.read_text() + "evaluation: {config: evaluation.yaml, options: {samples: 8}}\n")
    return run


def test_a_run_from_start_to_end(conf, tmp_path, capsys):
    """Hand-over, summary, refusal, resume, redo: one run, because each costs seconds."""
    run = ["run", f"--config={conf}", "--trainer.log_every_n_steps", "2"]
    place = tmp_path / "runs" / "tiny"
    assert main([*run, "--model.init_args.fails_at=5"]) == 1  # in the second stage, the first has 4 steps
    assert "the loss is NaN" in capsys.readouterr().err
    assert run_folder.is_done(place / "draw") and not run_folder.is_done(place / "see")
    assert run_folder.evaluation(place, "start").exists() and not run_folder.evaluation(place, "end").exists()
    assert main(run) == 2  # red without the refusal in open_run
    assert "--resume" in capsys.readouterr().err

    refused_before_anything_is_written(run, place, conf, capsys)

    done = (place / "draw" / "stage.json").stat().st_mtime_ns
    assert main([*run, "--resume"]) == 0
    out = capsys.readouterr().out
    assert (place / "draw" / "stage.json").stat().st_mtime_ns == done  # red without the return after "done before"
    assert "see: resuming" in out and "draw: done before" in out
    assert out.count("other settings: model.init_args.fails_at 5 -> -1\n") == 2 == out.count("other settings")
    check_summary(json.loads((place / "summary.json").read_text()))
    assert "What changed, by judges that were not the reward" in (place / "report.html").read_text()

    # what the first stage trained is where the second one starts; red with `earlier` including the stage itself
    command = next(line.strip() for line in out.splitlines() if line.startswith("  uae fit"))
    for part in ("projector", "decoder"):
        assert f"--model.autoencoder.{part}.path=runs/tiny/draw/weights/{part}" in shlex.split(command)
    drawn, seen = run_folder.read_rows(place / "draw"), run_folder.read_rows(place / "see")
    assert drawn[-1]["reward"] == pytest.approx(seen[0]["reward"]) and drawn[0]["reward"] != seen[0]["reward"]
    assert [row["step"] for row in seen] == [0, 2, 4, 6]

    # --only redoes one stage and forgets the later ones, which started from what is gone
    assert main([*run, "--only", "draw"]) == 0
    assert not run_folder.has_content(place / "see")
    assert run_folder.read_rows(place / "draw") == drawn
    summary = json.loads((place / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["draw"]
    # what was measured at the end is not true any more; red without clear_evaluation in run_one
    assert "evaluation" not in summary and not run_folder.evaluation(place, "end").exists()
    assert (place / "report.html").exists() and (place / "before_after.png").exists()


def refused_before_anything_is_written(run, place, conf, capsys):
    """A second writer, and a resume with what would mix two runs."""
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with locked(place, "it"):  # red without the locks of run_stages
        assert main([*run, "--resume"]) == 1 and f"is being written by process {os.getpid()}" in capsys.readouterr().err
    with locked(place / "see", "it"):  # red with run.stages[:0] there
        assert main([*run, "--overwrite"]) == 1
    with locked(place / "see", "it"):  # red without the lock of StageCLI
        fit = ["fit", f"--config={conf.parent / 'stage.yaml'}", f"--trainer.default_root_dir={place / 'see'}"]
        assert main([*fit, "--resume"]) == 1
    capsys.readouterr()
    assert main([*run, "--resume", "--seed_everything", "9"]) == 2  # red without check_earlier: draw is done
    assert "draw was started with other settings: seed_everything 3 -> 9;" in capsys.readouterr().err
    assert main([*fit, "--resume", "--model.class_path=stand_ins.OtherStage"]) == 2  # red without check_settings
    assert "model.class_path stand_ins.TinyStage -> stand_ins.OtherStage" in capsys.readouterr().err
    other = conf.with_name("other.yaml")
    other.write_text(conf.read_text().replace("name: draw", "name: paint"))
    assert main(["run", f"--config={other}", "--resume"]) == 2
    assert "was started with the stages draw, see, now they are paint, see" in capsys.readouterr().err
    unchanged = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert unchanged == {path: when for path, when in before.items() if path.is_file()}


def check_summary(summary):
    interval = {"mean", "low", "high", "n"}
    keys = {"name", "reward_before", "reward_after", "gain", "caption_tokens_before", "caption_tokens_after", "seconds"}
    for stage in summary["stages"]:
        assert set(stage) == keys and stage["seconds"] > 0
        assert all(set(stage[key]) == interval for key in ("reward_before", "reward_after", "gain"))
    gains = [stage["gain"]["mean"] for stage in summary["stages"]]
    assert min(gains) > 0 and summary["run"]["gain"]["mean"] == pytest.approx(sum(gains))
    assert set(summary["run"]) == {"gain", "unrewarded"} and summary["run"]["unrewarded"]["name"] == "Closeness"
    assert summary["run"]["unrewarded"]["gain"]["low"] > 0
    evaluation = summary["evaluation"]  # red with the weights of the start for the end
    before, after, gain = (evaluation[part]["unified_bench"]["overall"] for part in ("before", "after", "gain"))
    assert gain["low"] > 0 and gain["mean"] == pytest.approx(after["mean"] - before["mean"], abs=1e-5)
    assert set(evaluation["gain"]) == {"unified_bench", "images"} and evaluation["reward"] == "Closeness"


def test_a_stage_says_where_its_seconds_went(tmp_path):
    # red if the verbs are taken off the seconds a second time, or validation is left out of what was counted
    assert run_summary.in_brackets(run_summary.time_of(tmp_path, 9.0)) == ""
    spent = {"validation": 20.0, "steps": 60.0, "rollout": 25.0, "update": 30.0}
    (tmp_path / run_folder.TIME).write_text(json.dumps(spent))
    said = run_summary.in_brackets(run_summary.time_of(tmp_path, 90.0))
    assert said == " (steps 60 of which rollout 25, update 30; validation 20; start and end 10)"


def test_a_mistake_in_the_evaluation_is_found_before_anything_is_cleared(conf, tmp_path, capsys):
    # red with the judges parsed where they are first used
    (conf.parent / "evaluation.yaml").write_text(EVALUATION_YAML.replace("ImageHealth", "ImageHelth"))
    kept = tmp_path / "runs" / "tiny" / "draw" / "stage.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert main(["run", f"--config={conf}", "--overwrite"]) == 2
    assert "evaluation.yaml" in capsys.readouterr().err and kept.exists()


def test_gains_are_paired_by_picture():
    # red with `before[measure]` in place of a look-up by key
    before = {"keys": ["a", "b"], "reward": [0.0, 1.0], "reward_name": "r"}
    after = {"keys": ["b", "a"], "reward": [1.25, 0.25], "reward_name": "r"}
    assert run_summary.paired_gain(before, after, "reward") == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 2}
    with pytest.raises(ValueError, match="pictures differ"):
        run_summary.paired_gain(before, after | {"keys": ["a", "c"]}, "reward")
    with pytest.raises(ValueError, match="a run has one"):
        run_summary.paired_gain(before, after | {"reward_name": "other"}, "reward")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stagse": []}, "stages"),
        ({"name": "a/b"}, "folder"),
        ({"stages": []}, "at least one"),
        ({"stages": [{"name": "a"}]}, "no 'config'"),
        ({"stages": [{"name": "a", "config": "stage.yaml", "optoins": {}}]}, "did you mean options"),
        ({"stages": [{"name": "a", "config": "none.yaml"}]}, "none.yaml does not exist"),
        ({"stages": [{"name": "a", "config": "stage.yaml", "options": ["x"]}]}, "dotted keys"),
        ({"stages": [{"name": "a", "config": "stage.yaml"}] * 2}, "two stages"),
        ({"stages": [{"name": "evaluation", "config": "stage.yaml"}]}, "keeps its evaluations there"),
        ({"evaluation": "none.yaml"}, "none.yaml does not exist: it is the config of evaluation in"),
        ({"evaluation": {"config": "evaluation.yaml", "samples": 8}}, "unknown key 'samples'"),
        ({"overlays": ["large"]}, "must map names"),
        ({"overlays": {"large": {"sea": "stage.yaml"}}}, "unknown key 'sea' in overlay large.*did you mean see"),
        ({"overlays": {"large": {"see": {"option": {}}}}}, "see of overlay large.*did you mean options"),
        ({"overlays": {"large": {"all": "none.yaml"}}}, "none.yaml does not exist: it is the config of all of overlay"),
        ({"overlays": {"large": {}, "lage+large": {}}}, "'lage' in overlays.*did you mean large"),
        ({"choices": ["large"]}, "list of lists"),
        ({"choices": [["a/b"]]}, "an overlay in"),
    ],
)
def test_mistakes_in_the_list_of_stages(conf, change, words):
    # red with `required=("name",)` for a stage, or without the look for duplicates
    conf.write_text(yaml.safe_dump(yaml.safe_load(conf.read_text()) | change))
    with pytest.raises((UsageError, FileNotFoundError), match=words):
        run_spec.read_run(conf)


OVERLAYS = """
name: tiny
stages: [{name: draw, config: stage.yaml, options: {a.x: 1}}, {name: see, config: stage.yaml}]
choices: [[small, large], [cpu, card, cards]]
overlays:
  fast: {draw: {options: {a.x: 2}}}
  large: {all: [large.yaml, larger.yaml], see: large.yaml}
  card: {all: {config: card.yaml, options: {a.x: 3, a.y: 3}}}
  small+card: {see: {options: {a.y: 4}}}
"""


@pytest.mark.parametrize(
    ("given", "name", "draw", "see"),
    [
        ([], "tiny", ("", {"a.x": 1}), ("", {})),
        (["small", "fast"], "tiny_fast", ("", {"a.x": 2}), ("", {})),
        (["card", "fast"], "tiny_card_fast", ("card", {"a.x": 3, "a.y": 3}), ("card", {"a.x": 3, "a.y": 4})),
        (
            ["card", "large"],
            "tiny_large_card",
            ("large larger card", {"a.x": 3, "a.y": 3}),
            ("large larger large card", {"a.x": 3, "a.y": 3}),
        ),
    ],
)
def test_overlays_by_name(given, name, draw, see, tmp_path):
    # red with `<=` -> `>=` in laid_over, with the default left out of choose, or the stage's options over an overlay's
    for file in ("run", "stage", "large", "larger", "card"):
        (tmp_path / f"{file}.yaml").write_text(OVERLAYS)
    run = run_spec.read_run(tmp_path / "run.yaml", given)
    assert run.name == name
    assert [(" ".join(path.stem for path in s.overlays), s.options) for s in run.stages] == [draw, see]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["lage"], "--with lage: no overlay.*did you mean large.*small, large, cpu, card, cards"),
        (["card", "cards"], "--with card cards: .*exclude each other"),
    ],
)
def test_overlays_that_cannot_be(given, words, tmp_path):
    # red with `> 1` -> `> 2` in choose; without the look for unknown names
    for file in ("run", "stage", "large", "larger", "card"):
        (tmp_path / f"{file}.yaml").write_text(OVERLAYS)
    with pytest.raises(UsageError, match=words):
        run_spec.read_run(tmp_path / "run.yaml", given)


def test_options_reach_fit_in_order_and_as_they_are(tmp_path):
    # red with `str(value)` in place of json.dumps: True and None are no YAML
    options = {"a.b": True, "a.c": None, "a.d": 1e-4, "a.e": "x y", "a.f": [1]}
    stage = run_spec.StageSpec("s", tmp_path / "s.yaml", options)
    args = run_spec.fit_args(stage, ["--a.b=false"], tmp_path / "run", {"encoder": tmp_path / "w"})
    assert args[:2] == ["fit", f"--config={tmp_path / 's.yaml'}"]
    assert args[2:8] == ["--a.b=true", "--a.c=null", "--a.d=0.0001", "--a.e=x y", "--a.f=[1]", "--a.b=false"]
    assert args[8:] == [
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        f"--model.autoencoder.encoder.path={tmp_path / 'w'}",
    ]


def test_weights_come_from_the_latest_stage_that_wrote_them(tmp_path):
    # red with the two operands of `|` swapped
    for name in ("a/weights/decoder", "a/weights/projector", "b/weights/encoder", "c/weights/decoder"):
        (tmp_path / name).mkdir(parents=True)
    found = run_folder.latest_weights([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert {part: path.parts[-3] for part, path in found.items()} == {"decoder": "c", "encoder": "b", "projector": "a"}


def test_rows_of_a_resumed_stage(tmp_path):
    # red with `setdefault` in place of the assignment: the later row of a step counts
    rows = [{"step": 0, "reward": 1}, {"step": 4, "reward": 2}, {"step": 2, "reward": 3}, {"step": 4, "reward": 5}]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 6, "rew')
    assert [(row["step"], row["reward"]) for row in run_folder.read_rows(tmp_path)] == [(0, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize(
    "content", [b"", b"null\n", b'{"st\xff": 0}\n', b'{"step": 4}\n', b"[" * 9999 + b"\n", b'{"step": 0, "keys": []}']
)
def test_damaged_rows_of_a_stage_that_is_done_are_named(content, tmp_path):
    # red without one of the checks in `read_rows` and `parse_rows`: the gain would be that of other steps
    (tmp_path / "stage.json").write_text('{"step": 4}')
    (tmp_path / "validation.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'validation.jsonl'} is damaged.*repeat the stage"):
        run_folder.read_rows(tmp_path)
