"""What a study trains and evaluates: a YAML of arms, and the arithmetic that makes arms comparable.

name: ablations                   the study lives in runs/ablations
title: What each part is worth    the heading of its section in results.md
seeds: [0, 1]
evaluation:                       of the start, and of every arm with every seed (`uae evaluate`)
  config: scenes/decoder_rl.yaml  how captions and pictures are sampled
  judges: scenes/evaluation.yaml
  samples: 192                    pictures
  drawings: 480                   prompts
claims: full                      the arm whose gains over the start are claimed (may be left out)
compared: [{..., over: ARM}]      further claims, of its gains over other arms, or with `of: ARM` of that arm's (may be
                                  left out)
shows: scenes/study.yaml          what the page shows and claims (see `Shown`)
options: {trainer.log_every_n_steps: 5}      for every stage of every arm (may be left out)
arms:
  - name: full
    title: all three stages
    tables: [Stages]              arms of one table are compared with each other (may be left out)
    after: pretrained             begins with the weights with which that arm ended (may be left out)
    run: demo.yaml                the stages of a run; or `stages`, a list of them as in a run's YAML
    options: {...}                for every stage of this arm (may be left out)
    evaluation: scenes/codes.yaml  in place of the study's `config`, for other kinds of parts, or a list: the later one
                                  is laid over the one before (may be left out)
    judges: scenes/rewriting.yaml  this arm is evaluated with these in place of the study's (may be left out); such an
                                  arm needs no stages: it is the arm it comes after, with other judges
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uae_lightning import ranges
from uae_lightning.ranges import Count, Seed
from uae_lightning.run.spec import StageSpec, check_keys, check_name, read_run, read_stage, read_yaml
from uae_lightning.study.claims import START, Claim, read_claim
from uae_lightning.usage import UsageError, closest


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    stages: tuple[StageSpec, ...]
    after: str | None
    tables: tuple[str, ...]
    configs: tuple[Path, ...] = ()  # by which it is evaluated; none: the study's
    judges: Path | None = None  # in place of the study's


@dataclass(frozen=True)
class Protocol:
    """How everything is evaluated."""

    configs: tuple[Path, ...]  # of a stage, and what is laid over it
    judges: Path
    samples: int
    drawings: int


@dataclass(frozen=True)
class Shown:
    """What a study's page shows, from a YAML of its own. A figure is SUITE/NAME, of validations validation/reward.

    bars: {geneval: {title: ..., figures: [geneval/colors, ...]}}   each a drawing NAME.svg, values from 0 to 1
    columns: {unified_bench/overall: unified score}                 of the tables of arms
    claims: [{name, title, figure, goal, paper}]                    `study.claims.read_claim`
    captions: {class_path: ...}                a `report.captions.CaptionMarker` (may be left out)
    """

    bars: dict[str, dict[str, Any]]
    columns: dict[str, str]
    claims: tuple[Claim, ...]
    captions: dict[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    config: Path
    seeds: tuple[int, ...]
    protocol: Protocol
    arms: dict[str, Arm]
    claims: str | None
    compared: tuple[Claim, ...]
    shown: Shown

    def line(self, arm: str) -> list[Arm]:
        """The arm and those it comes after, the earliest first."""
        before = self.arms[arm].after
        return [*(self.line(before) if before else []), self.arms[arm]]

    def selected(self, only: list[str] | None) -> list[Arm]:
        """All arms, or those named with all that they come after, in the order of the YAML."""
        for name in only or ():
            if name not in self.arms:
                raise UsageError(f"no arm {name!r} in {self.config}{closest(name, self.arms)}")
        wanted = {arm.name for name in only or self.arms for arm in self.line(name)}
        return [arm for arm in self.arms.values() if arm.name in wanted]


def read_study(path: Path) -> Study:
    """Reads and checks a study.

    Raises:
        FileNotFoundError: the YAML, or one that it names, is missing.
        UsageError: it does not say what it must, or says something unknown.
    """
    content = read_yaml(path, "a study, such as conf/reproduce.yaml")
    required = ("name", "title", "seeds", "evaluation", "shows", "arms")
    check_keys(content, required=required, allowed=(*required, "claims", "compared", "options"), where=str(path))
    check_name(content["name"], where=f"name in {path}")
    for name in ("seeds", "arms"):
        if not isinstance(content[name], list) or not content[name]:
            raise UsageError(f"{name} in {path} must be a list with at least one entry")
    for number, seed in enumerate(content["seeds"], 1):
        check_number(f"seed {number} in {path}", Seed, seed)
    arms: dict[str, Arm] = {}
    for number, entry in enumerate(content["arms"], 1):
        arm = read_arm(entry, path, number, content.get("options") or {})
        if arm.name in arms or arm.name == START:
            raise UsageError(f"arm {number} in {path}: the name {arm.name!r} is taken, choose another")
        if arm.after and arm.after not in arms:
            raise UsageError(
                f"arm {arm.name} in {path} is after {arm.after!r}{closest(arm.after, arms)}: list it first"
            )
        arms[arm.name] = arm
    claims = content.get("claims")
    if claims is not None and claims not in list(arms):
        raise UsageError(f"claims in {path} names no arm: {claims!r}{closest(str(claims), arms)}")
    compared = [
        read_claim(entry, f"comparison {n} in {path}") for n, entry in enumerate(content.get("compared", []), 1)
    ]
    for claim in compared:
        for name in (claim.of or claims, claim.over):
            if name not in arms and not (name == START and name == claim.over):
                raise UsageError(
                    f"{claim.name} in {path} compares the arm that `of` or else `claims` names with `over`, another: "
                    f"got {claim.of or claims!r} and {claim.over!r}{closest(str(name), arms)}"
                )
    return Study(content["name"], content["title"], path, tuple(content["seeds"]),
                 read_protocol(content["evaluation"], path), arms, claims, tuple(compared),
                 read_shown(path.parent / content["shows"]))  # fmt: skip


def read_shown(path: Path) -> Shown:
    content = read_yaml(path, "what a study shows, such as conf/scenes/study.yaml")
    required = ("bars", "columns", "claims")
    check_keys(content, required=required, allowed=(*required, "captions"), where=str(path))
    for name, entry in content["bars"].items():
        check_keys(entry, required=("title", "figures"), allowed=("title", "figures"), where=f"bars.{name} in {path}")
    claims = tuple(read_claim(entry, f"claim {n} in {path}") for n, entry in enumerate(content["claims"], 1))
    return Shown(content["bars"], content["columns"], claims, content.get("captions"))


def read_arm(entry: Any, path: Path, number: int, options: dict[str, Any]) -> Arm:
    where = f"arm {number} in {path}"
    allowed = ("name", "title", "tables", "after", "run", "stages", "options", "evaluation", "judges")
    check_keys(entry, required=("name", "title"), allowed=allowed, where=where)
    check_name(entry["name"], where=f"name of {where}")
    judged_anew = bool(entry.get("judges")) and bool(entry.get("after"))  # the arm before, by other judges
    if bool(entry.get("run")) == bool(entry.get("stages")) and not (judged_anew and "run" not in entry):
        raise UsageError(f"{where} needs either run, the YAML of a run, or stages, a list of them")
    if not isinstance(entry.get("stages") or [], list) or not isinstance(entry.get("run", ""), str):
        raise UsageError(f"{where}: stages must be a list, run the name of a YAML")
    if not isinstance(entry.get("options") or {}, dict) or not isinstance(entry.get("tables", []), list):
        raise UsageError(f"{where}: options must map dotted keys to values, tables must be a list")
    if "run" in entry:
        stages = read_run(path.parent / entry["run"]).stages
    else:
        stages = [read_stage(stage, path, place) for place, stage in enumerate(entry.get("stages") or [], 1)]
    options = options | (entry.get("options") or {})
    stages = tuple(replace(stage, options=stage.options | options) for stage in stages)
    configs, judges = (arm_files(entry, key, path, where) for key in ("evaluation", "judges"))
    if len(judges) > 1:
        raise UsageError(f"judges of {where} must be the name of one YAML")
    tables = tuple(entry.get("tables", ()))
    return Arm(entry["name"], entry["title"], stages, entry.get("after"), tables, configs, *judges)


def arm_files(entry: dict[str, Any], key: str, path: Path, where: str) -> tuple[Path, ...]:
    given = entry.get(key) or []
    files = tuple(path.parent / str(name) for name in (given if isinstance(given, list) else [given]))
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: it is the {key} of {where}")
    return files


def read_protocol(entry: Any, path: Path) -> Protocol:
    names = ("config", "judges", "samples", "drawings")
    check_keys(entry, required=names, allowed=names, where=f"evaluation in {path}")
    for name in ("config", "judges"):
        if not isinstance(entry[name], str):
            raise UsageError(f"evaluation.{name} in {path} must be the name of a YAML, got {entry[name]!r}")
    files = {name: path.parent / entry[name] for name in ("config", "judges")}
    for name, file in files.items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: it is evaluation.{name} in {path}")
    for name in ("samples", "drawings"):
        check_number(f"evaluation.{name} in {path}", Count, entry[name])
    return Protocol((files["config"],), files["judges"], entry["samples"], entry["drawings"])


def check_number(name: str, of: type, value: Any) -> None:
    try:
        ranges.check(name, of, value)
    except ValueError as error:
        raise UsageError(str(error)) from error


def seeded(stage: StageSpec, seed: int) -> StageSpec:
    """The stage with another seed for its data, noise and initial adapters; the held-out pictures stay the same."""
    return replace(stage, options=stage.options | {"seed_everything": seed})


SECONDS_PER_SAMPLE = 0.15  # of an evaluation: pictures and drawings, on one core
