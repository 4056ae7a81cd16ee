"""`uae run`: the stages of a YAML one after the other.

Weights go on by name; every stage can be resumed, or repeated alone by the `uae fit` command that is printed.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.evaluation.table import INSTRUMENTS
from uae_lightning.files import write_json
from uae_lightning.parallel.locking import locked
from uae_lightning.report.summary import one_line, stage_record, summarise
from uae_lightning.run import folder as run_folder
from uae_lightning.run.masking import masked_command
from uae_lightning.run.provenance import provenance
from uae_lightning.run.spec import RunSpec, StageSpec, add_overlays, fit_args, read_run
from uae_lightning.usage import Parser, UsageError, closest

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from uae_lightning.parallel.launch import Followers

DESCRIPTION = """\
Runs the stages that a YAML lists, one after the other, and writes summary.json and report.html.

    name: demo                        the run goes to runs/demo
    seed_everything: 0                of all stages and their data, also --seed_everything 1 (may be left out)
    stages:
      - name: encoder_rl              a folder in it
        config: encoder_rl.yaml       the stage's YAML, looked up next to this one; [a.yaml, b.yaml] lays b over a
        options: {trainer.max_steps: 40}   dotted options on top of it (may be left out)
    evaluation:                       what `uae evaluate` judges start and end with (may be left out)
      config: evaluation.yaml
      options: {samples: 32}
    choices: [[medium, large]]        names that exclude each other, the default first (may be left out)
    overlays:                         what a name given by --with lays over the stages, in this order (may be left out)
      large: {all: large.yaml}        over every stage
      80gb:
        encoder_rl:                   over that one
          config: 80gb.yaml           or [a.yaml, b.yaml]
          options: {model.init_args.micro_batch: 4}
      80gb+large: ...                 where both are chosen

--with large 80gb lays these over the stages, and the run goes to runs/demo_large_80gb. Any other dotted option, such as
--trainer.max_steps 2, is passed to every stage.
"""


# ------------------------------------------------------------------------------------------------ command line


def main(args: list[str]) -> None:
    from uae_lightning.parallel.launch import Followers, is_main
    from uae_lightning.run.evaluation import parse_evaluation

    options, overrides = parse(args)
    others = Followers()
    if not is_main():
        follow(others)
        return
    spec = read_run(options.config, options.overlays)
    folder = options.output or Path("runs") / spec.name
    first, last = selection(spec, options.start, options.only)
    for stage in spec.stages[first:last]:  # all of them before the first one takes its time
        check_stage(stage, overrides)
    if spec.evaluation:
        parse_evaluation(spec.evaluation)
    with ExitStack() as locks:
        for place in (folder, *(folder / stage.name for stage in spec.stages[first:])):
            locks.enter_context(locked(place, f"the run {folder}"))
        chosen = options.start or options.only
        if options.resume:
            check_earlier(folder, spec, first if chosen else len(spec.stages), overrides)
        open_run(folder, spec, first, resume=options.resume, overwrite=options.overwrite, chosen=chosen)
        command = masked_command(["uae", "run", *args])
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
    from uae_lightning.run.stage_cli import run_stage

    while (args := main.hear()) is not None:
        run_stage(args)
        gc.collect()


def parse(args: list[str]):
    """The options of `run`, and what it passes on to every stage."""
    parser = Parser(prog="uae run", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="YAML", help="the list of stages (needed)")
    add_overlays(parser)
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


def check_earlier(folder: Path, spec: RunSpec, kept: int, overrides: list[str]) -> None:
    """The stages of the folder must be those of the YAML, the done ones of the first `kept` with the same settings.

    Raises:
        UsageError: they do not, and what is there would be mixed with something else, or lost.
    """
    from uae_lightning.run.stage_cli import parse_stage

    record, names = folder / "run.json", [stage.name for stage in spec.stages]
    before = run_folder.read_json(record, "stages")["stages"] if record.exists() else []
    if (common := min(len(before), len(names))) and before[:common] != names[:common]:
        raise UsageError(
            f"{folder} was started with the stages {', '.join(before)}, now they are {', '.join(names)}: give it the "
            "YAML it was started with, or another folder by --output"
        )
    for index, stage in enumerate(spec.stages[:kept]):
        place, earlier = folder / stage.name, [folder / name for name in names[:index]]
        if run_folder.is_done(place):
            parse_stage(fit_args(stage, overrides, place, run_folder.latest_weights(earlier))).check_settings(place)


def write_run_record(folder: Path, spec: RunSpec, config: Path, command: str) -> None:
    record = {"name": spec.name, "config": str(config), "stages": [stage.name for stage in spec.stages]}
    write_json(folder / "run.json", record | provenance(command))


# ------------------------------------------------------------------------------------------------ one stage


def run_one(folder: Path, spec: RunSpec, index: int, overrides: list[str], others: Followers) -> None:
    """Runs a stage, unless it is done, and records it."""
    from uae_lightning.files import recover

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
    print(f"\n{heading}{': resuming' if resume else ''}\n  {masked_command(['uae', *args])}", flush=True)
    others.tell(args)
    steps, seconds = trained(args)
    gc.collect()  # the next stage loads its own models
    record = stage_record(stage.name, place, steps, seconds, masked_command(["uae", *args]))
    write_json(place / "stage.json", record)
    print(one_line(record), flush=True)


def trained(args: list[str]) -> tuple[int, float]:
    """Steps and seconds of the stage; nothing of it stays in memory."""
    from uae_lightning.run.stage_cli import run_stage

    cli = run_stage(args, lock=False)  # the run holds the locks of its stages
    return cli.trainer.global_step, cli.clock.seconds()


def check_stage(stage: StageSpec, overrides: list[str]) -> None:
    from uae_lightning.run.stage_cli import check_training, parse_stage

    try:
        config = parse_stage(fit_args(stage, overrides, Path("unused"), {})).config.fit
        check_training(config)
        check_callbacks(config.trainer)
    except UsageError as error:
        raise UsageError(f"stage {stage.name} ({stage.config}): {error}") from error


def check_callbacks(trainer: Namespace) -> None:
    """Raises UsageError where a stage would hand on no weights, or leave no figures for the summary."""
    callbacks = {callback.class_path.rpartition(".")[2]: callback for callback in trainer.callbacks or []}
    for name in ("RewardCallback", "ComponentWeights"):
        if name not in callbacks:
            raise UsageError(f"add callbacks.{name} to trainer.callbacks: a run cannot do without")
    if not callbacks["RewardCallback"].init_args.get("unrewarded"):
        raise UsageError("give callbacks.RewardCallback an `unrewarded`: a run has a second judge")
    if trainer.limit_val_batches == 0:
        raise UsageError("trainer.limit_val_batches must be above 0: a run compares the validations of its stages")


# ------------------------------------------------------------------------------------------------ results


def evaluate(folder: Path, spec: RunSpec, moment: str, overrides: list[str], command: str) -> None:
    """Judges the run at its "start" or its "end", unless that was done before with the same settings."""
    from uae_lightning.run.evaluation import evaluate_into

    if spec.evaluation is None:
        return
    began, output = time.monotonic(), run_folder.evaluation(folder, moment)
    evaluate_into(
        output,
        spec.stages[-1],
        spec.evaluation,
        run_folder.latest_weights([folder / stage.name for stage in spec.stages]) if moment == "end" else {},
        overrides=overrides,
        without=(INSTRUMENTS,) if moment == "end" else (),  # the judges are the same
        command=command,
        keep_earlier=True,
    )
    gc.collect()
    print(f"\nEvaluated the {moment} of the run in {time.monotonic() - began:.0f} s: {output}", flush=True)
