"""Trains the arms of a study with several seeds, evaluates them, and writes what came out."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.table import INSTRUMENTS
from uae_lightning.paths import resolve
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import StageRun
from uae_lightning.run.spec import read_stage_yaml
from uae_lightning.study.cost import decoder_forwards, seconds_estimate
from uae_lightning.study.jobs import Desk, Job, Runner
from uae_lightning.study.page import write_results
from uae_lightning.study.plan import SECONDS_PER_SAMPLE, START, Arm, Protocol, Study, read_study, seeded
from uae_lightning.usage import UsageError


def run_study(options: argparse.Namespace, command: str) -> Path | None:
    """What `uae study` does with its options; returns the page of results, None where it only listed the jobs."""
    study = read_study(options.config)
    place, arms, seeds = Path("runs") / study.name, study.selected(options.only), options.seeds or study.seeds
    desk = Desk(place / "logs", plan_jobs(study, place, arms, seeds))
    if options.dry_run:
        show(desk, arms, options.jobs)
        return None
    if not options.report:
        clear_stale(desk, overwrite=options.overwrite)
        check(desk, arms, seeds)
        if failed := Runner(desk, options.jobs, options.cores).run():
            names = ", ".join(job.name for job in failed)
            raise ValueError(f"{len(failed)} of {len(desk.jobs)} jobs failed ({names}); the same command tries again")
    seeds = sorted({*seeds, *(int(folder.name.removeprefix("seed-")) for folder in place.glob("seed-*"))})
    whole = Desk(desk.folder, plan_jobs(study, place, list(study.arms.values()), seeds))  # with what earlier calls did
    return write_results(study, place, whole, options.output, command)


def check(desk: Desk, arms: list[Arm], seeds: Iterable[int]) -> None:
    """Raises UsageError for a mistake in a stage that is to be run, before any of them takes its time."""
    left = {job.name for job in desk.jobs if not desk.done(job)}
    for arm in arms:
        for stage in arm.stages:
            if any(f"seed-{seed}/{arm.name}/{stage.name}" in left for seed in seeds):
                StageRun(seeded(stage, 0)).check()


def clear_stale(desk: Desk, *, overwrite: bool) -> None:
    """Removes what other settings have made, if that was asked for; else raises UsageError where there is any."""
    stale = desk.stale()
    if stale and not overwrite:
        names = ", ".join(job.name for job in stale)
        raise UsageError(f"settings or shipped weights have changed since these jobs ran: {names}; redo: --overwrite")
    for job in stale:
        job.clear()


def show(desk: Desk, arms: list[Arm], slots: int) -> None:
    """Arms with their cost, then the jobs that are left."""
    print(f"{'arm':20} {'decoder forwards':>16} {'min on a core':>13}  stages")
    for arm in arms:
        forwards, seconds = (sum(map(of, arm.stages)) for of in (decoder_forwards, seconds_estimate))
        stages = [*([f"({arm.after})"] if arm.after else []), *(stage.name for stage in arm.stages)]
        print(f"{arm.name:20} {forwards:16,} {seconds / 60:13.1f}  {', '.join(stages)}")
    left = [job for job in desk.jobs if not desk.done(job)]
    minutes = sum(job.seconds for job in left) / slots / 60
    print("\n".join(job.name for job in left))
    print(f"{len(left)} of {len(desk.jobs)} jobs to run, about {minutes:.0f} minutes with {slots} at a time")


# ------------------------------------------------------------------------------------------------ jobs


def plan_jobs(study: Study, place: Path, arms: list[Arm], seeds: Iterable[int]) -> list[Job]:
    """The evaluation of the start; for each seed and arm its stages, one after the other, and an evaluation."""
    jobs = [evaluation_job(study.protocol, place / START, START, [], None)]
    for seed in seeds:
        last: dict[str | None, Job | None] = {None: None}  # of each arm
        for arm in arms:
            before = last[arm.after]
            for index in range(len(arm.stages)):
                before = stage_job(study, place / f"seed-{seed}", arm, index, seed, before)
                jobs.append(before)
            last[arm.name] = before
            weights = [place / f"seed-{seed}" / one.name for one in study.line(arm.name) if one.stages]
            configs, judges = arm.configs or study.protocol.configs, arm.judges or study.protocol.judges
            protocol = replace(study.protocol, configs=configs, judges=judges)
            name = f"seed-{seed}/{arm.name}"
            jobs.append(evaluation_job(protocol, place / name, name, weights, before))
    return jobs


def stage_job(study: Study, place: Path, arm: Arm, index: int, seed: int, before: Job | None) -> Job:
    stage, folder = seeded(arm.stages[index], seed), place / arm.name

    def command() -> list[str]:
        write_run(study, place, arm, seed)
        args = ["--config", folder / "run.yaml", "--output", folder, "--resume", "--only", stage.name]
        return [sys.executable, "-m", "uae_lightning", "run", *map(str, args)]

    return Job(
        name=f"seed-{seed}/{arm.name}/{stage.name}",
        needs=before.name if before else None,
        seconds=seconds_estimate(stage),
        settings={
            "config": read_stage_yaml(stage.config),
            **overlays_of(stage.overlays),
            "options": stage.options,
            "starts_from": before.digest if before else shipped_weights(),
        },
        result=folder / stage.name / "stage.json",
        command=command,
        clear=lambda: run_folder.clear_stage(folder / stage.name),
        outcome=lambda: rewards(run_folder.read_json(folder / stage.name / "stage.json")),
    )


def rewards(stage: dict[str, Any]) -> str:
    """Of a stage's record: ", reward 0.7120 -> 0.7431"."""
    before, after = (stage[f"reward_{moment}"]["mean"] for moment in ("before", "after"))
    return f", reward {before:.4f} -> {after:.4f}"


def overall(record: dict[str, Any]) -> str:
    """Of an evaluation's: ", unified_bench 0.812, geneval 0.790"."""
    means = {suite: figures[OVERALL]["mean"] for suite, figures in record["figures"].items() if OVERALL in figures}
    return "".join(f", {suite} {mean:.3f}" for suite, mean in means.items())


def overlays_of(paths: Sequence[Path]) -> dict[str, Any]:
    """What lies over a stage's YAML, nothing where nothing does: results from before there were overlays stay valid."""
    return {"overlays": [read_stage_yaml(path) for path in paths]} if paths else {}


def write_run(study: Study, place: Path, arm: Arm, seed: int) -> None:
    """The YAML of a run of this arm's stages: where it begins is in its options, so that it can be repeated alone."""
    earlier = [place / before.name / stage.name for before in study.line(arm.name)[:-1] for stage in before.stages]
    starts = {f"model.autoencoder.{part}.path": str(path) for part, path in run_folder.latest_weights(earlier).items()}
    target = place / arm.name / "run.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    stages = [
        {
            "name": stage.name,
            "config": [os.path.relpath(config, target.parent) for config in (stage.config, *stage.overlays)],
            "options": stage.options | starts,
        }
        for stage in (seeded(stage, seed) for stage in arm.stages)
    ]
    marker = {"captions": study.shown.captions} if study.shown.captions else {}
    target.write_text(yaml.safe_dump({"name": arm.name, "stages": stages, **marker}, sort_keys=False))


def evaluation_job(protocol: Protocol, place: Path, name: str, weights: list[Path], before: Job | None) -> Job:
    output = place / "evaluation.json"
    config, *over = protocol.configs
    args: list[Any] = [word for path in protocol.configs for word in ("--config", path)]
    args += ["--evaluation", protocol.judges, "--output", output]
    args += ["--samples", protocol.samples, "--drawings", protocol.drawings]
    if weights:  # the judges themselves are measured once, at the start
        args += ["--weights", *weights, "--without", INSTRUMENTS]
    return Job(
        name=f"{name}/evaluation",
        needs=before.name if before else None,
        seconds=SECONDS_PER_SAMPLE * (protocol.samples + protocol.drawings),
        settings={
            "config": read_stage_yaml(config),
            **overlays_of(over),
            "judges": yaml.safe_load(protocol.judges.read_text()),
            "samples": protocol.samples,
            "drawings": protocol.drawings,
            "starts_from": before.digest if before else shipped_weights(),
        },
        result=output,
        command=lambda: [sys.executable, "-m", "uae_lightning", "evaluate", *map(str, args)],
        clear=lambda: output.unlink(missing_ok=True),
        outcome=lambda: overall(run_folder.read_json(output)),
    )


@functools.cache
def shipped_weights() -> str:
    """A digest of the weights that come with the package: results of other weights must not be mixed in."""
    digest = hashlib.sha256()
    for path in sorted(resolve("shipped:scenes").rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
