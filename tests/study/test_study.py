"""A study of two arms and two seeds on the tiny parts: training is real, evaluations are written by hand."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from uae_lightning import cli
from uae_lightning.evaluation.geneval import TASKS
from uae_lightning.run import folder as run_folder
from uae_lightning.study import cost, jobs, page, plan

ROOT = Path(__file__).parents[2]


def study_yaml(folder: Path, parts: Path) -> Path:
    options = {f"model.autoencoder.{part}.path": str(parts / part) for part in ("encoder", "projector", "decoder")}
    options |= {
        "model.autoencoder.captioning.max_new_tokens": 8,
        "data.init_args.batch_size": 2,
        "data.init_args.validation_pictures": 4,
        "data.init_args.validation_batch_size": 4,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    group = {"model.init_args.group_size": 4, "model.init_args.micro_batch": 8}
    scenes = ROOT / "conf" / "scenes"
    content = {
        "name": "tiny",
        "title": "A tiny study",
        "seeds": [0, 1],
        "shows": str(scenes / "study.yaml"),
        "evaluation": {"config": str(scenes / "encoder_rl.yaml"), "judges": str(scenes / "evaluation.yaml"),
                       "samples": 4, "drawings": 6},
        "claims": "full",
        "options": options,
        "compared": [{"name": "seeing", "title": "A", "figure": "language/tokens", "goal": "no_loss", "over": "drawn"}],
        "arms": [
            {"name": "drawn", "title": "stage 1", "tables": ["Stages"],
             "stages": [{"name": "draw", "config": str(scenes / "decoder_pretrain.yaml")}]},
            {"name": "full", "title": "stages 1 and 2", "tables": ["Stages"], "after": "drawn",
             "stages": [{"name": "see", "config": str(scenes / "encoder_rl.yaml"), "options": group}]},
        ],
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def evaluation_by_hand(args: list[str]) -> None:
    """What `uae evaluate` writes, better with weights than without."""
    output = Path(args[args.index("--output") + 1])
    gain = 0.2 if "--weights" in args else 0.0
    values = (0.3 + gain + np.linspace(0, 0.1, 8)).tolist()
    items = {
        "unified_bench": {"overall": values, "pixels": values},
        "geneval": {task: values for task in TASKS},
        "geneval_unguided": {task: [value - 0.1 for value in values] for task in TASKS},
        "perception": {"small_objects": values, "class": values, "hallucination": values},
        "language": {"tokens": [20 + 50 * gain] * 8},
    }
    better = {"hallucination": -1, "tokens": 0}
    about = {
        suite: {"statistics": {name: {"lists": [name], "kind": "mean", "better": better.get(name, 1)} for name in of}}
        for suite, of in items.items()
    }
    for suite in ("geneval", "geneval_unguided"):
        about[suite]["statistics"]["overall"] = {"lists": list(TASKS), "kind": "tasks", "better": 1}
    interval = {"mean": 0.99, "low": 0.98, "high": 1.0, "n": 8}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_name("evaluation.items.json").write_text(json.dumps(items))
    output.write_text(json.dumps({"figures": {"instruments": {"parser": interval}}, "suites": about}))


class InProcess:
    """In place of subprocess.Popen: the same command, here, because every start of Python costs seconds."""

    calls: list[list[str]] = []

    def __init__(self, command, **_):
        self.calls.append(command)
        args = command[command.index("uae_lightning") + 1 :]
        self.returncode = evaluation_by_hand(args) or 0 if args[0] == "evaluate" else cli.main(args)

    def poll(self):
        return self.returncode


@pytest.fixture
def tiny(tmp_path, monkeypatch, parts_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(Popen=InProcess, DEVNULL=None))
    monkeypatch.setattr(InProcess, "calls", [])
    return study_yaml(tmp_path, parts_folder)


def test_a_study_from_start_to_end(tiny, tmp_path, capsys):
    """Training, resuming, results, a second study in the same files: one test, because training costs seconds."""
    args = ["study", "--config=study.yaml", "--output=docs", "--jobs=1"]
    assert cli.main(args) == 0, capsys.readouterr().err
    assert len(InProcess.calls) == 1 + 2 * 4  # the start, and for each seed two stages and two evaluations
    place = tmp_path / "runs" / "tiny"

    # the second arm starts from the weights of the first, of the same seed; red with `line` leaving out earlier arms
    spec = yaml.safe_load((place / "seed-1" / "full" / "run.yaml").read_text())
    options = spec["stages"][0]["options"]
    assert options["model.autoencoder.decoder.path"] == "runs/tiny/seed-1/drawn/draw/weights/decoder"
    assert options["seed_everything"] == 1 and not [key for key in options if key.endswith(".seed")]
    rows = [run_folder.read_rows(place / f"seed-{seed}" / "drawn" / "draw") for seed in (0, 1)]
    assert rows[0][0]["keys"] == rows[1][0]["keys"] and rows[0][0]["reward"] == rows[1][0]["reward"]  # same pictures
    assert rows[0][-1]["reward"] != rows[1][-1]["reward"]  # red with the seed left out of the options

    data = json.loads((tmp_path / "docs" / "results.json").read_text())
    claims = {claim["name"]: claim for claim in data["claims"]}
    assert claims["unified_pixels"]["reached"] and claims["geneval_overall"]["gain"]["mean"] == pytest.approx(0.2)
    assert not claims["hallucination"]["reached"] and "reward" in claims
    assert claims["seeing"]["gain"]["mean"] == 0 and claims["seeing"]["before"]["seeds"] == 2  # over an arm, by seed
    assert data["arms"]["tiny"]["full"]["seeds"] == [0, 1] and data["provenance"]["tiny"]["seeds"] == [0, 1]
    arms = data["arms"]["tiny"]
    assert arms["full"]["decoder_forwards"] - arms["drawn"]["decoder_forwards"] == 2 * 2 * 4 * 3

    text = (tmp_path / "docs" / "results.md").read_text()
    assert "**Not reached:**" in text and "`hallucination`" in text.split("**Not reached:**")[1]
    assert text.count("| perception/hallucination |") == 2  # among all figures, and among those that got worse
    for link in set(page.re.findall(r"\]\((results/[^)]+)\)", text)):
        assert 0 < (tmp_path / "docs" / link).stat().st_size < 300_000
    assert {path.name for path in (tmp_path / "docs" / "results").iterdir()} >= {
        "tiny-geneval.svg", "tiny-perception.svg", "tiny-reward.svg", "tiny-pictures.png", "tiny-1-caption_tokens.svg",
    }  # fmt: skip
    assert str(tmp_path) not in text

    again(args, tiny, tmp_path, capsys)


def again(args, tiny, tmp_path, capsys):
    before = len(InProcess.calls)
    assert cli.main(args) == 0 and len(InProcess.calls) == before  # red with done() always False
    assert "9 of 9 jobs are done already" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "runs" / "tiny" / "seed-1" / "full")
    assert cli.main([*args, "--dry-run"]) == 0 and len(InProcess.calls) == before
    assert "2 of 9 jobs to run" in capsys.readouterr().out

    # another study adds its section, and leaves claims and arms of this one; red with `part["arms"]` in merged()
    content = yaml.safe_load(tiny.read_text())
    del content["claims"]
    anew = {"name": "anew", "title": "judged anew", "after": "drawn", "judges": content["evaluation"]["judges"]}
    score = {"title": "B", "figure": "unified_bench/overall"}
    content["compared"] = [
        score | {"name": "start", "of": "drawn", "goal": {"gains": {"least": 0.2}}},
        score | {"name": "same", "of": "anew", "over": "drawn", "goal": {"keeps": {"within": 0.01}}},
        {"name": "ways", "title": "C", "of": "anew", "over": "anew", "figure": "geneval_unguided/overall",
         "over_suite": "geneval", "goal": "falls"},
        score | {"name": "lacking", "of": "anew", "figure": "no/such", "goal": "rises"},
    ]  # fmt: skip
    other, arms = tmp_path / "other.yaml", [content["arms"][0], anew]
    other.write_text(yaml.safe_dump(content | {"name": "other", "title": "Another study", "arms": arms}))
    shutil.copytree(tmp_path / "runs" / "tiny", tmp_path / "runs" / "other")
    assert cli.main(["study", f"--config={other}", "--output=docs", "--jobs=1"]) == 0, capsys.readouterr().err
    assert len(InProcess.calls) == before + 2  # the evaluations by other judges; nothing is trained for them
    assert [word for word in InProcess.calls[-1] if word.endswith("drawn")]  # red with its own folder among --weights
    data = json.loads((tmp_path / "docs" / "results.json").read_text())
    text = (tmp_path / "docs" / "results.md").read_text()
    assert set(data["arms"]) == set(data["provenance"]) == {"tiny", "other"} and data["claims"]
    assert "## A tiny study" in text and text.count("## Another study") == 1
    # any two arms are compared, or two suites of one; red with `over_suite` left out, or the start no arm
    found = {one["name"]: (round(one["gain"]["mean"], 6), one["reached"]) for one in data["comparisons"]["other"]}
    assert found == {"start": (0.2, True), "same": (0.0, True), "ways": (-0.1, True)}
    assert "| B | the start | stage 1 |" in text and "**3 of 3 bars are reached.**" in text
    content = yaml.safe_load(tiny.read_text())
    del content["claims"], content["compared"]

    # settings that changed are noticed, and with them all that came after; red with "starts_from" left out
    content["arms"][0]["stages"][0]["options"] = {"trainer.log_every_n_steps": 2}
    tiny.write_text(yaml.safe_dump(content))
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error and "seed-0/full/see" in error and "start/evaluation" not in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": [{"name": "a", "title": "A", "stages": ["y"], "run": "x"}]}, "either run"),
        (
            {"arms": [{"name": "a", "title": "A", "run": str(ROOT / "conf" / "smoke.yaml"), "after": "b"}]},
            "list it first",
        ),
        ({"claims": "ful"}, "did you mean full"),
        ({"claims": {"a": 1}}, "claims in .* names no arm"),
        ({"evaluation": {"config": "a.yaml", "judges": "b.yaml", "samples": 2, "drawings": 2}}, "evaluation.config"),
        ({"seed": [1]}, "did you mean seeds"),
        ({"arms": [{"name": "a", "title": "A", "judges": "b.yaml"}]}, "either run"),
        (
            {"arms": [{"name": "a", "title": "A", "run": str(ROOT / "conf" / "smoke.yaml"), "judges": "b.yaml"}]},
            "b.yaml does not exist: it is the judges of arm 1",
        ),
        ({"compared": [{"name": "a", "title": "A", "figure": "b/c", "goal": "rises", "of": "ful"}]}, "mean full"),
        ({"shows": "nothing.yaml"}, "nothing.yaml does not exist"),
        ({"compared": [{"name": "a", "title": "A", "figure": "b/c", "goal": "rises", "over": "ful"}]}, "mean full"),
    ],
)
def test_mistakes_in_a_study(tiny, change, words):
    # red without the check of `after`, or with `claims` unchecked
    tiny.write_text(yaml.safe_dump(yaml.safe_load(tiny.read_text()) | change))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        plan.read_study(tiny)


@pytest.mark.parametrize(
    ("stage", "options", "forwards"),
    [
        ("decoder_pretrain", {}, 3 * 32 * 5),
        ("encoder_rl", {"model.init_args.group_size": 8}, 6 * 8 * 3 * 5),
        ("encoder_rl", {"model.init_args.group_size": 8, "model.init_args.updates_per_batch": 5}, 6 * 8 * 3),
        ("decoder_rl", {"model.init_args.group_size": 16}, 6 * 16 * (3 + 2 * 3) * 5),
        ("decoder_rl", {"model.init_args.group_size": 16, "model.init_args.kl_beta": 0.1}, 6 * 16 * (3 + 2 * 4) * 5),
        ("decoder_rl", {"model.init_args.group_size": 16, "model.autoencoder.sampling.guidance": 2.0},
         6 * 16 * (6 + 2 * 6) * 5),
        ("decoder_rl", {"model.init_args.group_size": 16, "model.autoencoder.sampling.guidance": 2.0,
                        "model.init_args.guidance_gradient": "conditional"}, 6 * 16 * (6 + 2 * 4) * 5),
        ("decoder_rl", {"model.init_args.auxiliaries": [{"class_path": "uae_lightning.stages.replay.DecoderReplay",
                                                         "init_args": {"weight": 1.0}}]},
         6 * (16 * (3 + 2 * 3) + 3) * 5),
        ("decoder_matching", {"model.init_args.kl_beta": 0.1}, 6 * 16 * (3 + 2 * 4) * 5),
        ("joint_rl", {"model.init_args.pictures.init_args.window": [1, 2]}, 6 * 4 * 4 * (3 + 3) * 5),
        ("cold_start", {"model.init_args.gradient_steps": 2}, 6 * (1 + 2 * 3 + 1) * 5),  # one of the two is run again
        ("rewrite_sft", {}, 0),
    ],
)  # fmt: skip
def test_decoder_forwards(stage, options, forwards):
    # red with a pass with gradients counted once, guidance or an auxiliary loss left out, or the defaults of a policy
    fixed = {"trainer.max_steps": 5, "trainer.val_check_interval": 5, "model.autoencoder.sampling.steps": 3,
             "data.init_args.batch_size": 32 if stage == "decoder_pretrain" else 6}  # fmt: skip
    if stage == "decoder_rl":  # its YAML may change
        fixed |= {"model.init_args.window": [0, 2], "model.init_args.kl_beta": 0.0}
    spec = plan.StageSpec(stage, ROOT / "conf" / "scenes" / f"{stage}.yaml", fixed | options)
    assert cost.decoder_forwards(spec) == forwards


def test_a_stage_that_does_not_say_what_it_spends():
    # red without `except NotImplementedError`
    scenes = ROOT / "conf" / "scenes" / "encoder_rl.yaml"
    spec = plan.StageSpec("mine", scenes, {"model.class_path": "uae_lightning.stages.common.Stage"})
    with pytest.raises(plan.UsageError, match="stage mine .* give its class a method `work`"):
        cost.decoder_forwards(spec)


def test_arms_of_related_systems_spend_about_the_same_where_they_are_compared():
    # red with any max_steps of these arms in conf/relatives.yaml doubled
    study = plan.read_study(ROOT / "conf" / "relatives.yaml")

    def spent(name: str) -> int:
        return sum(cost.decoder_forwards(stage) for arm in study.line(name) for stage in arm.stages)

    for names in (["stage1", "cold_start", "b"], ["a_b", "joint"], ["a", "a_replay", "a_kl", "ppo"]):
        assert max(map(spent, names)) <= 1.1 * min(map(spent, names)), names


def test_guard_rails_spend_what_their_controls_do():
    # red with any max_steps of these arms in conf/guard_rails.yaml doubled
    arms = plan.read_study(ROOT / "conf" / "guard_rails.yaml").arms
    spent = {name: sum(map(cost.decoder_forwards, arm.stages)) for name, arm in arms.items()}
    for start, control in (("a", spent["a"]), ("b", spent["b"])):
        of = [cost for name, cost in spent.items() if name == start or name.startswith(f"{start}_")]
        assert len(of) > 4 and max(of) <= 1.1 * control <= 1.21 * min(of), of


def test_arms_at_equal_decoder_forwards_spend_the_same():
    # red with any max_steps of those arms in conf/reproduce.yaml doubled
    study = plan.read_study(ROOT / "conf" / "reproduce.yaml")
    arms = [arm for arm in study.arms.values() if "At equal decoder forwards" in arm.tables]
    lines = {arm.name: [stage for one in study.line(arm.name)[1:] for stage in one.stages] for arm in arms}
    spent = {name: sum(map(cost.decoder_forwards, stages)) for name, stages in lines.items()}
    assert len(spent) == 4 and max(spent.values()) <= 1.01 * min(spent.values()), spent
