"""`uae run`: the stages of a YAML one after the other.

Weights go on by name; every stage can be resumed, or repeated alone by the `uae fit` command that is printed.
"""

from __future__ import annotations

import gc
import json
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from uae_lightning import run_folder
from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.provenance import provenance
from uae_lightning.usage import Parser, UsageError, closest

if TYPE_CHECKING:
    from uae_lightning.parallel.launch import Followers

DESCRIPTION = """\
Runs the stages that a YAML lists, one after the other, and writes summary.json and report.html.

    name: demo                        the run goes to runs/demo
    stages:
      - name: encoder_rl              a folder in it
        config: encoder_rl.yaml       the stage's YAML, looked up next to this one; [a.yaml, b.yaml] lays b over a
        options: {trainer.max_steps: 40}   dotted options on top of it (may be left out)
    evaluation:                       what `uae evaluate` judges start and end with (may be left out)
      config: evaluation.yaml
      options: {samples: 32}

Any other dotted option, such as --trainer.max_steps 2, is passed to every stage.
"""


@dataclass(frozen=True)
class EvaluationSpec:
    config: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class StageSpec:
    name: str
    config: Path
    options: dict[str, Any]
    overlays: tuple[Path, ...] = ()  # YAMLs over `config`, the later one counts; options count more


@dataclass(frozen=True)
class RunSpec:
    name: str
    stages: list[StageSpec]
    evaluation: EvaluationSpec | None = None


# ------------------------------------------------------------------------------------------------ command line


def main(args: list[str]) -> None:
    from uae_lightning.evaluate import parse_evaluation
    from uae_lightning.parallel.launch import Followers, is_main

    options, overrides = parse(args)
    others = Followers()
    if not is_main():
        follow(others)
        return
    spec = read_run(options.config)
    folder = options.output or Path("runs") / spec.name
    first, last = selection(spec, options.start, options.only)
    for stage in spec.stages[first:last]:  # all of them before the first one takes its time
        check_stage(stage, overrides)
    if spec.evaluation:
        parse_evaluation(spec.evaluation)
    chosen = options.start or options.only
    open_run(folder, spec, first, resume=options.resume, overwrite=options.overwrite, chosen=chosen)
    command = shlex.join(["uae", "run", *args])
    write_run_record(folder, spec, options.config, command)
    evaluate(folder, spec, "start", overrides, command)
    for index in range(first, last):
        run_one(folder, spec, index, overrides, others)
        if index == len(spec.stages) - 1:
            evaluate(folder, spec, "end", overrides, command)
        summarise(folder)
    others.tell(None)
    print(f"Summary: {folder / 'summary.json'}\nReport:  {folder / 'report.html'}")


def follow(main: Followers) -> None:
    """On every process but rank 0, where the ranks were started from outside: trains the stages along with it."""
    from uae_lightning.stage_cli import run_stage

    while (args := main.hear()) is not None:
        run_stage(args)
        gc.collect()


def parse(args: list[str]):
    """The options of `run`, and what it passes on to every stage."""
    parser = Parser(prog="uae run", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="YAML", help="the list of stages (needed)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the run goes instead of runs/NAME")
    parser.add_argument("--resume", action="store_true", help="keep finished stages, continue a half-finished one")
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that holds a run")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--from", dest="start", metavar="STAGE", help="redo that stage and all later ones, keeping the earlier ones"
    )
    choice.add_argument(
        "--only", metavar="STAGE", help="redo that stage alone; later ones are cleared, as their start is gone"
    )
    options, rest = parser.parse_known_args(args)
    if options.resume and options.overwrite:
        parser.error("--resume continues and --overwrite starts again: choose one")
    overrides = pair_up(parser, rest)
    if options.config is None:
        parser.error("name the YAML of a run with --config")
    return options, overrides


def pair_up(parser: Parser, rest: list[str]) -> list[str]:
    """`--a.b 2` and `--a.b=2` alike become `--a.b=2`; anything that is no dotted option is refused."""
    pairs: list[str] = []
    for word in rest:
        if word.startswith("--"):
            if "." not in word.split("=")[0] and word.split("=")[0] != "--seed_everything":
                parser.refuse([word])
            if word.split("=")[0] == "--trainer.default_root_dir":
                parser.error("--trainer.default_root_dir is set for each stage: choose the run's folder with --output")
            pairs.append(word)
        elif pairs and "=" not in pairs[-1]:
            pairs[-1] += f"={word}"
        else:
            parser.error(f"unexpected argument {word!r}")
    for pair in pairs:
        if "=" not in pair:
            parser.error(f"{pair} needs a value")
    return pairs


def selection(spec: RunSpec, start: str | None, only: str | None) -> tuple[int, int]:
    """First and one past the last stage to run."""
    names = [stage.name for stage in spec.stages]
    if (name := start or only) is None:
        return 0, len(names)
    if name not in names:
        raise UsageError(f"no stage {name!r} in this run{closest(name, names)} (stages: {', '.join(names)})")
    first = names.index(name)
    return first, first + 1 if only else len(names)


# ------------------------------------------------------------------------------------------------ the run's YAML


def read_run(path: Path) -> RunSpec:
    """Reads and checks the list of stages.

    Raises:
        FileNotFoundError: the YAML, or that of a stage, is missing.
        UsageError: it does not say what it must, or says something unknown.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give --config the YAML of a run, such as conf/demo.yaml")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    check_keys(content, required=("name", "stages"), allowed=("name", "stages", "evaluation"), where=str(path))
    check_name(content["name"], where=f"name in {path}")
    if not isinstance(content["stages"], list) or not content["stages"]:
        raise UsageError(f"stages in {path} must be a list with at least one stage")
    stages = [read_stage(entry, path, number) for number, entry in enumerate(content["stages"], 1)]
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two stages in {path} are called {name!r}: each needs a folder of its own")
    if "evaluation" in names:
        raise UsageError(f"no stage in {path} can be called 'evaluation': the run keeps its evaluations there")
    return RunSpec(content["name"], stages, read_evaluation(content.get("evaluation"), path))


def read_stage(entry: Any, path: Path, number: int) -> StageSpec:
    where = f"stage {number} in {path}"
    check_keys(entry, required=("name", "config"), allowed=("name", "config", "options"), where=where)
    check_name(entry["name"], where=f"name of {where}")
    (config, *overlays), options = read_configs(entry, path, where, example="trainer.max_steps: 40")
    return StageSpec(entry["name"], config, options, tuple(overlays))


def read_evaluation(entry: Any, path: Path) -> EvaluationSpec | None:
    if entry is None:
        return None
    where = f"evaluation in {path}"
    entry = {"config": entry} if isinstance(entry, str) else entry
    check_keys(entry, required=("config",), allowed=("config", "options"), where=where)
    configs, options = read_configs(entry, path, where, example="samples: 32")
    if len(configs) > 1:
        raise UsageError(f"config of {where} must be one YAML")
    return EvaluationSpec(configs[0], options)


def read_configs(entry: dict[str, Any], path: Path, where: str, *, example: str) -> tuple[list[Path], dict[str, Any]]:
    """The YAMLs that an entry names, one or a list, and the options on top of them."""
    names = entry["config"] if isinstance(entry["config"], list) else [entry["config"]]
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"config of {where} must be a YAML, or a list of YAMLs")
    configs = [path.parent / name for name in names]
    for config in configs:
        if not config.is_file():
            raise FileNotFoundError(
                f"{config} does not exist: it is the config of {where}, looked up next to {path.name}"
            )
    options = entry.get("options") or {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UsageError(f"options of {where} must map dotted keys to values, such as {example}")
    return configs, options


def check_keys(value: Any, *, required: tuple[str, ...], allowed: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must have the keys {', '.join(allowed)}")
    for key in value:
        if key not in allowed:
            raise UsageError(f"unknown key {key!r} in {where}{closest(str(key), allowed)}")
    for key in required:
        if key not in value:
            raise UsageError(f"{where} has no {key!r}")


def check_name(name: Any, *, where: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"{where} names a folder: letters, digits, '_', '-' and '.', got {name!r}")


# ------------------------------------------------------------------------------------------------ the run's folder


def open_run(folder: Path, spec: RunSpec, first: int, *, resume: bool, overwrite: bool, chosen: str | None) -> None:
    """Clears what the stages to run must not find, and refuses to clear what nobody said could go."""
    stages = [folder / stage.name for stage in spec.stages]
    if not (resume or overwrite or chosen) and any(run_folder.has_content(stage) for stage in stages):
        raise UsageError(
            f"{folder} holds a run: --resume continues it, --overwrite starts again, --from STAGE redoes it from "
            "there, --output FOLDER goes elsewhere"
        )
    if chosen:
        for stage in stages[:first]:
            if not run_folder.is_done(stage):
                raise UsageError(f"{stage.name} comes before {chosen} and is not done in {folder}: run it first")
        keep_first = resume and not run_folder.is_done(stages[first])  # --resume --from: continue it where it stopped
        for stage in stages[first + keep_first :]:
            run_folder.clear_stage(stage)
    elif overwrite:
        run_folder.clear_evaluation(folder, "start", "end")
        for stage in stages:
            run_folder.clear_stage(stage)


def write_run_record(folder: Path, spec: RunSpec, config: Path, command: str) -> None:
    record = {"name": spec.name, "config": str(config), "stages": [stage.name for stage in spec.stages]}
    run_folder.write_json(folder / "run.json", record | provenance(command))


# ------------------------------------------------------------------------------------------------ one stage


def run_one(folder: Path, spec: RunSpec, index: int, overrides: list[str], others: Followers) -> None:
    """Runs a stage, unless it is done, and records it."""
    from uae_lightning.checkpoint_io import recover
    from uae_lightning.stage_cli import run_stage

    stage, place = spec.stages[index], folder / spec.stages[index].name
    heading = f"[{index + 1}/{len(spec.stages)}] {stage.name}"
    if run_folder.is_done(place):
        print(f"{heading}: done before")
        return
    for later in spec.stages[index + 1 :]:  # they would have started from weights that this stage replaces
        run_folder.clear_stage(folder / later.name)
    run_folder.clear_evaluation(folder, "end")
    recover(run_folder.last_checkpoint(place))
    resume = run_folder.last_checkpoint(place).exists()
    earlier = [folder / other.name for other in spec.stages[:index]]
    args = fit_args(stage, overrides, place, run_folder.latest_weights(earlier))
    args += ["--resume"] if resume else ["--overwrite"]
    print(f"\n{heading}{': resuming' if resume else ''}\n  {shlex.join(['uae', *args])}", flush=True)
    start, earlier_seconds = time.time(), seconds_before(place) if resume else 0.0
    run_folder.write_json(place / "clock.json", {"start": start, "earlier_seconds": earlier_seconds})
    others.tell(args)
    run_stage(args)
    gc.collect()  # the next stage loads its own models
    record = stage_record(stage.name, place, earlier_seconds + time.time() - start, shlex.join(["uae", *args]))
    run_folder.write_json(place / "stage.json", record)
    print(one_line(record), flush=True)


def fit_args(stage: StageSpec, overrides: list[str], place: Path, weights: dict[str, Path]) -> list[str]:
    """`fit` and its options: configs, then the stage's options, then the run's, then what the pipeline decides."""
    configs = [f"--config={config}" for config in (stage.config, *stage.overlays)]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in stage.options.items()}
    options = [f"--{key}={text}" for key, text in texts.items()]
    handed = [f"--model.init_args.{part}.init_args.path={path}" for part, path in sorted(weights.items())]
    root = f"--trainer.default_root_dir={place}"
    return ["fit", *configs, *options, *overrides, root, *handed]


def check_stage(stage: StageSpec, overrides: list[str]) -> None:
    from uae_lightning.stage_cli import parse_stage

    try:
        config = parse_stage(fit_args(stage, overrides, Path("unused"), {})).config.fit
        for callback in config.trainer.callbacks or []:
            if callback.class_path.endswith(".RewardCallback") and not callback.init_args.get("unrewarded"):
                raise UsageError("give callbacks.RewardCallback an `unrewarded`: a run has a second judge")
    except UsageError as error:
        raise UsageError(f"stage {stage.name} ({stage.config}): {error}") from error


def seconds_before(place: Path) -> float:
    """Seconds that earlier processes spent on what the checkpoint holds."""
    if not (place / "clock.json").exists():
        return 0.0
    clock = json.loads((place / "clock.json").read_text())
    return clock["earlier_seconds"] + max(0.0, run_folder.last_checkpoint(place).stat().st_mtime - clock["start"])


# ------------------------------------------------------------------------------------------------ results


def stage_record(name: str, place: Path, seconds: float, command: str) -> dict[str, Any]:
    """What a stage changed on the held-out pictures, from its first and last validation."""
    rows = run_folder.read_rows(place)
    if len(rows) < 2:
        raise ValueError(
            f"{place}/validation.jsonl has {len(rows)} row(s), before and after are needed: "
            "keep trainer.num_sanity_val_steps at -1 and let trainer.val_check_interval divide trainer.max_steps"
        )
    before, after = rows[0], rows[-1]
    return {
        "name": name,
        "reward_before": mean_interval(before["reward"]),
        "reward_after": mean_interval(after["reward"]),
        "gain": paired_gain(before, after, "reward"),
        "caption_tokens_before": mean(before["caption_tokens"]),
        "caption_tokens_after": mean(after["caption_tokens"]),
        "seconds": round(seconds, 1),
        "reward_name": after["reward_name"],
        "unrewarded": {
            "name": after["unrewarded_name"],
            "before": mean_interval(before["unrewarded"]),
            "after": mean_interval(after["unrewarded"]),
            "gain": paired_gain(before, after, "unrewarded"),
        },
        "step": after["step"],
        "command": command,
    }


SUMMARY_KEYS = (
    "name", "reward_before", "reward_after", "gain", "caption_tokens_before", "caption_tokens_after", "seconds",
)  # fmt: skip


def evaluate(folder: Path, spec: RunSpec, moment: str, overrides: list[str], command: str) -> None:
    """Judges the run at its "start" or its "end", unless that was done before with the same settings."""
    from uae_lightning.evaluate import evaluate_into

    if spec.evaluation is None:
        return
    began, output = time.monotonic(), run_folder.evaluation(folder, moment)
    evaluate_into(
        output,
        spec.stages[-1],
        spec.evaluation,
        run_folder.latest_weights([folder / stage.name for stage in spec.stages]) if moment == "end" else {},
        overrides=overrides,
        without=("instruments",) if moment == "end" else (),  # the judges are the same
        command=command,
        keep_earlier=True,
    )
    gc.collect()
    print(f"\nEvaluated the {moment} of the run in {time.monotonic() - began:.0f} s: {output}", flush=True)


def summarise(folder: Path) -> None:
    """summary.json and report.html of the stages done so far; the run's gain is last after less first before.

    Where some stage was validated on other pictures than the last, the gain is that of the others, from "since" on.
    """
    from uae_lightning.report import write_report

    done = [stage for stage in run_folder.stages_of(folder) if run_folder.is_done(stage)]
    records = [json.loads((stage / "stage.json").read_text()) for stage in done]
    compared = run_folder.comparable(done)
    before, after = run_folder.read_rows(compared[0])[0], run_folder.read_rows(compared[-1])[-1]
    run = {
        "gain": paired_gain(before, after, "reward"),
        "unrewarded": {"name": after["unrewarded_name"], "gain": paired_gain(before, after, "unrewarded")},
    }
    if compared != done:
        run["since"] = compared[0].name
        others = ", ".join(stage.name for stage in done if stage not in compared)
        print(
            f"validated on other pictures than {done[-1].name}: {others}; the gain of the run leaves it out", flush=True
        )
    summary = {"stages": [{key: record[key] for key in SUMMARY_KEYS} for record in records], "run": run}
    if all(run_folder.evaluation(folder, moment).exists() for moment in ("start", "end")):
        summary["evaluation"] = evaluated_gains(folder)
    run_folder.write_json(folder / "summary.json", summary)
    write_report(folder)


def evaluated_gains(folder: Path) -> dict[str, Any]:
    """Figures of `uae evaluate` before and after the run, and the gains of the same pictures and prompts."""
    from uae_lightning.evaluation.gains import compare

    outputs = [run_folder.evaluation(folder, moment) for moment in ("start", "end")]
    before, after = (json.loads(output.read_text()) for output in outputs)
    gains = compare(*(json.loads(run_folder.items_of(output).read_text()) for output in outputs))
    about = {key: before[key] for key in ("reward", "kin_of_reward", "instruments") if key in before}
    return {"before": {key: before[key] for key in gains}, "after": {key: after[key] for key in gains}, "gain": gains,
            **about}  # fmt: skip


def paired_gain(before: dict[str, Any], after: dict[str, Any], measure: str) -> dict[str, float | int]:
    """Mean difference over the same pictures, each with itself.

    Raises:
        ValueError: the two rows are of different pictures, or of different measures.
    """
    if set(before["keys"]) != set(after["keys"]):
        raise ValueError("held-out pictures differ between validations: every stage needs the same validation set")
    if before[f"{measure}_name"] != after[f"{measure}_name"]:
        raise ValueError(
            f"{measure} is {before[f'{measure}_name']!r} in one stage and {after[f'{measure}_name']!r} in another: "
            "a run has one"
        )
    first = dict(zip(before["keys"], before[measure], strict=True))
    return mean_interval([value - first[key] for key, value in zip(after["keys"], after[measure], strict=True)])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def one_line(record: dict[str, Any]) -> str:
    gain = record["gain"]
    return (
        f"{record['name']}: {record['reward_name']} {record['reward_before']['mean']:.4f} -> "
        f"{record['reward_after']['mean']:.4f}, gain {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], "
        f"caption {record['caption_tokens_before']:.1f} -> {record['caption_tokens_after']:.1f} tokens, "
        f"{record['seconds']:.0f} s"
    )
