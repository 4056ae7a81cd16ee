"""What a study has found: its evaluations and validations compared, as results.json keeps them."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae_lightning.evaluation.statistics import Items, Statistic
from uae_lightning.evaluation.table import INSTRUMENTS
from uae_lightning.run import folder as run_folder
from uae_lightning.run.provenance import provenance
from uae_lightning.study.claims import START, Claim, Figure, as_json, claimed, figure, figures
from uae_lightning.study.cost import decoder_forwards
from uae_lightning.study.jobs import Desk
from uae_lightning.study.plan import Arm, Study

VALIDATION = {  # the figures of validations, as an evaluation describes its own
    "validation": {
        "statistics": {name: {"lists": [name], "kind": "mean", "better": 1} for name in ("reward", "unrewarded")}
    }
}


@dataclass(frozen=True)
class Outcome:
    """An arm with the seeds that are done."""

    arm: Arm
    seeds: list[int]
    stages: list[list[Path]]  # [seeds][stages], from the start on
    forwards: list[int]  # of each stage
    items: list[dict[str, Items]]  # [seeds] the values behind the figures
    figures: dict[str, Figure]  # over the start
    reward: str  # name of what the last stage was rewarded for


def outcomes(study: Study, place: Path, desk: Desk) -> dict[str, Outcome]:
    """The arms of which at least one seed has been evaluated, in the order of the YAML."""
    found, done = {}, [job.name for job in desk.jobs if desk.done(job)]
    for arm in study.arms.values():
        names = [re.fullmatch(rf"seed-(\d+)/{re.escape(arm.name)}/evaluation", name) for name in done]
        seeds = [int(name[1]) for name in names if name]
        if not seeds or f"{START}/evaluation" not in done:
            continue
        line = [(one.name, stage.name) for one in study.line(arm.name) for stage in one.stages]
        stages = [[place / f"seed-{seed}" / one / stage for one, stage in line] for seed in seeds]
        rows = [(run_folder.read_rows(of_seed[0])[0], run_folder.final_row(of_seed[-1])) for of_seed in stages]
        first, last = rows[0]
        measures = [name for name in ("reward", "unrewarded") if first.get(f"{name}_name") == last.get(f"{name}_name")]
        about = described(place / START)
        before = items_of(place / START, first, measures)
        after = [
            items_of(place / f"seed-{seed}" / arm.name, last, measures)
            for seed, (_, last) in zip(seeds, rows, strict=True)
        ]
        forwards = [decoder_forwards(stage) for one in study.line(arm.name) for stage in one.stages]
        of_arm = figures(about, [before], after)
        found[arm.name] = Outcome(arm, seeds, stages, forwards, after, of_arm, judge(last, "reward"))
    return found


def described(*folders: Path) -> dict[str, Any]:
    """What these evaluations say of their figures, by suite."""
    found = [json.loads((folder / "evaluation.json").read_text())["suites"] for folder in folders]
    return functools.reduce(dict.__or__, found) | VALIDATION


def compared(study: Study, place: Path, found: dict[str, Outcome]) -> list[dict[str, Any]]:
    """The comparisons of arms that are done, by the seeds that both have."""
    known = [(claim, figure_of(study, place, found, claim)) for claim in study.compared]
    return [as_json(claim, one) for claim, one in known if one is not None]


def figure_of(study: Study, place: Path, found: dict[str, Outcome], claim: Claim) -> Figure | None:
    """What a comparison is about; None where one of both arms, or the figure, is not there."""
    of = found.get(claim.of or study.claims or "")
    known = [*found[claim.over].seeds] if claim.over in found else []
    seeds = [seed for seed in (of.seeds if of else []) if claim.over == START or seed in known]
    if of is None or not seeds:
        return None
    suite, name = claim.figure.split("/", 1)
    after = [of.items[of.seeds.index(seed)].get(suite) for seed in seeds]
    starts = [place / START if claim.over == START else place / f"seed-{seed}" / claim.over for seed in seeds]
    before = [items_of(folder, {}, []).get(claim.over_suite or suite) for folder in starts]
    about = described(starts[0], place / f"seed-{seeds[0]}" / of.arm.name)
    one = about.get(suite, {"statistics": {}})["statistics"].get(name)
    if one is None or None in before or None in after:
        return None
    return figure(Statistic(tuple(one["lists"]), one["kind"]), before, after, one["better"])


def items_of(folder: Path, row: dict[str, Any], measures: list[str]) -> dict[str, Items]:
    """The values of an evaluation, and those of a validation, whose pictures are the same for all seeds."""
    items = json.loads(run_folder.items_of(folder / "evaluation.json").read_text())
    return items | {"validation": {name: row[name] for name in measures if name in row}}


def judge(row: dict[str, Any], measure: str) -> str:
    """Name of what gave the `measure` of a validation and, if it has several, of its parts."""
    name, key = row.get(f"{measure}_name", "none"), "parts" if measure == "reward" else f"{measure}_parts"
    parts = [part for part in row.get(key, {}) if "/" not in part]
    return f"{name} of {', '.join(parts)}" if len(parts) > 1 else name


def part_of(study: Study, place: Path, desk: Desk, found: dict[str, Outcome], command: str) -> dict[str, Any]:
    """This study's part of results.json."""
    start = json.loads((place / START / "evaluation.json").read_text())
    part: dict[str, Any] = {"arms": {study.name: {}}}
    comparisons = compared(study, place, found)
    if study.claims in found:
        part["claims"] = claimed(study.shown.claims, {START: found[study.claims].figures}) + comparisons
    elif study.claims is None:
        part["comparisons"] = {study.name: comparisons}
    for name, outcome in found.items():
        part["arms"][study.name][name] = {
            "title": outcome.arm.title,
            "reward": outcome.reward,
            "seeds": outcome.seeds,
            "decoder_forwards": sum(outcome.forwards),
            "figures": {key: figure.as_json() for key, figure in outcome.figures.items()},
        }
    facts = {
        "config": str(study.config),
        "seeds": sorted({seed for outcome in found.values() for seed in outcome.seeds}),
        "samples": study.protocol.samples,
        "drawings": study.protocol.drawings,
        "minutes": round(desk.wall_minutes(), 1),
        "minutes_of_jobs": {
            job.name: round(desk.record(job).get("seconds", 0.0) / 60, 1) for job in desk.jobs if desk.done(job)
        },
        "settings": {job.name: job.settings for job in desk.jobs if desk.done(job)},
        "instruments": start["figures"].get(INSTRUMENTS, {}),
    }
    return part | {"provenance": {study.name: provenance(command) | facts}}


def merged(path: Path, part: dict[str, Any]) -> dict[str, Any]:
    """results.json with this study's part renewed; that of other studies stays."""
    known = json.loads(path.read_text()) if path.exists() else {"claims": [], "arms": {}, "provenance": {}}
    return {
        "claims": part.get("claims", known["claims"]),
        "comparisons": known.get("comparisons", {}) | part.get("comparisons", {}),
        "arms": known["arms"] | part["arms"],
        "provenance": known["provenance"] | part["provenance"],
    }
