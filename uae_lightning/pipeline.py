"""`uae run`: the stages of a YAML one after the other.

Weights go on by name; every stage can be resumed, or repeated alone by the `uae fit` command that is printed.
"""

from __future__ import annotations

import argparse
import gc
import time
from contextlib import ExitStack
from pathlib import Path

from jsonargparse import Namespace

from uae_lightning.evaluation.table import INSTRUMENTS
from uae_lightning.files import recover, write_json
from uae_lightning.parallel.launch import Followers
from uae_lightning.parallel.locking import locked
from uae_lightning.report.captions import CaptionMarker
from uae_lightning.report.page import write_report
from uae_lightning.report.summary import one_line, stage_record, summarise
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import Run, StageRun, Weights, build
from uae_lightning.run.evaluation import evaluate_into
from uae_lightning.run.masking import masked_command
from uae_lightning.run.provenance import provenance
from uae_lightning.run.stage_cli import run_stage
from uae_lightning.usage import UsageError, closest


def run_stages(run: Run, options: argparse.Namespace, command: str, others: Followers) -> None:
    """Trains the stages that `options`, those of `uae run`, choose; evaluates and summarises.

    Args:
        command: what was typed, without secrets.
        others: the other ranks, where they were started from outside.
    """
    first, last = selection(run, options.start, options.only)
    for stage in run.stages[first:last]:  # all of them before the first one takes its time
        stage.check()
    marker = build(CaptionMarker, run.captions) if run.captions else CaptionMarker()
    with ExitStack() as locks:
        for place in (run.folder, *(stage.place for stage in run.stages[first:])):
            locks.enter_context(locked(place, f"the run {run.folder}"))
        chosen = options.start or options.only
        if options.resume:
            check_earlier(run, first if chosen else len(run.stages))
        open_run(run, first, resume=options.resume, overwrite=options.overwrite, chosen=chosen)
        write_run_record(run, options.config, command)
        evaluate(run, "start", command)
        for index in range(first, last):
            run_one(run, index, others)
            if index == len(run.stages) - 1:
                evaluate(run, "end", command)
            summarise(run.folder)
            write_report(run.folder, marker)
    others.tell(None)


def follow(main: Followers) -> None:
    """On every process but rank 0, where the ranks were started from outside: trains the stages along with it."""
    while (args := main.hear()) is not None:
        run_stage(args)
        gc.collect()


def selection(run: Run, start: str | None, only: str | None) -> tuple[int, int]:
    """First and one past the last stage to run."""
    names = [stage.name for stage in run.stages]
    if (name := start or only) is None:
        return 0, len(names)
    if name not in names:
        raise UsageError(f"no stage {name!r} in this run{closest(name, names)} (stages: {', '.join(names)})")
    first = names.index(name)
    return first, first + 1 if only else len(names)


# ------------------------------------------------------------------------------------------------ the run's folder


def open_run(run: Run, first: int, *, resume: bool, overwrite: bool, chosen: str | None) -> None:
    """Clears what the stages to run must not find, and refuses to clear what nobody said could go."""
    places = [stage.place for stage in run.stages]
    if not (resume or overwrite or chosen) and any(run_folder.has_content(place) for place in places):
        raise UsageError(
            f"{run.folder} holds a run: --resume continues it, --overwrite starts again, --from STAGE redoes it from "
            "there, --output FOLDER goes elsewhere"
        )
    if chosen:
        for stage in run.stages[:first]:
            if not run_folder.is_done(stage.place):
                raise UsageError(f"{stage.name} comes before {chosen} and is not done in {run.folder}: run it first")
        keep_first = resume and not run_folder.is_done(places[first])  # --resume --from: continue it where it stopped
        for place in places[first + keep_first :]:
            run_folder.clear_stage(place)
    elif overwrite:
        run_folder.clear_evaluation(run.folder, "start", "end")
        for place in places:
            run_folder.clear_stage(place)


def check_earlier(run: Run, kept: int) -> None:
    """The stages of the folder must be those of the YAML, the done ones of the first `kept` with the same settings.

    Raises:
        UsageError: they do not, and what is there would be mixed with something else, or lost.
    """
    record, names = run.folder / "run.json", [stage.name for stage in run.stages]
    before = run_folder.read_json(record, "stages")["stages"] if record.exists() else []
    if (common := min(len(before), len(names))) and before[:common] != names[:common]:
        raise UsageError(
            f"{run.folder} was started with the stages {', '.join(before)}, now they are {', '.join(names)}: give it "
            "the YAML it was started with, or another folder by --output"
        )
    for index, stage in enumerate(run.stages[:kept]):
        if run_folder.is_done(stage.place):
            stage.parsed.check_settings(stage.place, stage.starting_from(run.weights(index)))


def write_run_record(run: Run, config: Path, command: str) -> None:
    record = {"name": run.name, "config": str(config), "stages": [stage.name for stage in run.stages]}
    record |= {"judged": run.judges is not None}
    write_json(run.folder / "run.json", record | provenance(command))


# ------------------------------------------------------------------------------------------------ one stage


def run_one(run: Run, index: int, others: Followers) -> None:
    """Runs a stage, unless it is done, and records it."""
    stage = run.stages[index]
    heading = f"[{index + 1}/{len(run.stages)}] {stage.name}"
    if run_folder.is_done(stage.place):
        print(f"{heading}: done before")
        return
    for later in run.stages[index + 1 :]:  # they would have started from weights that this stage replaces
        run_folder.clear_stage(later.place)
    run_folder.clear_evaluation(run.folder, "end")
    recover(run_folder.last_checkpoint(stage.place))
    resume, weights = run_folder.last_checkpoint(stage.place).exists(), run.weights(index)
    args = [*stage.arguments(weights), "--resume" if resume else "--overwrite"]
    command = masked_command(["uae", *args])
    print(f"\n{heading}{': resuming' if resume else ''}\n  {command}", flush=True)
    others.tell(args)
    steps, seconds = trained(stage, weights, args, resume=resume)
    gc.collect()  # the next stage loads its own models
    record = stage_record(stage.name, stage.place, steps, seconds, command)
    write_json(stage.place / "stage.json", record)
    print(one_line(record), flush=True)


def trained(stage: StageRun, weights: Weights, args: list[str], *, resume: bool) -> tuple[int, float]:
    """Steps and seconds of the stage; nothing of it stays in memory."""
    config = stage.starting_from(weights)
    config.resume, config.overwrite = resume, not resume
    parsed = Namespace(subcommand="fit", fit=config)
    cli = run_stage(args, parsed=parsed, lock=False)  # the run holds the locks of its stages
    return cli.trainer.global_step, cli.clock.seconds()


# ------------------------------------------------------------------------------------------------ results


def evaluate(run: Run, moment: str, command: str) -> None:
    """Judges the run at its "start" or its "end", unless that was done before with the same settings."""
    if run.judges is None:
        return
    began, output = time.monotonic(), run_folder.evaluation(run.folder, moment)
    evaluate_into(
        output,
        run.stages[-1],
        run.judges,
        run.weights() if moment == "end" else {},
        without=(INSTRUMENTS,) if moment == "end" else (),  # the judges are the same
        command=command,
        keep_earlier=True,
    )
    gc.collect()
    print(f"\nEvaluated the {moment} of the run in {time.monotonic() - began:.0f} s: {output}", flush=True)
