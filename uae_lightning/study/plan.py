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
compared: [{..., over: ARM}]      further claims, of its gains over other arms (may be left out)
shows: scenes/study.yaml          what the page shows and claims (see `Shown`)
options: {trainer.log_every_n_steps: 5}      for every stage of every arm (may be left out)
arms:
  - name: full
    title: all three stages
    tables: [Stages]              arms of one table are compared with each other (may be left out)
    after: pretrained             begins with the weights with which that arm ended (may be left out)
    run: demo.yaml                the stages of a run; or `stages`, a list of them as in a run's YAML
    options: {...}                for every stage of this arm (may be left out)
"""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uae_lightning import ranges
from uae_lightning.ranges import Count, Seed
from uae_lightning.run.compiled import StageRun
from uae_lightning.run.spec import (
    StageSpec,
    check_keys,
    check_name,
    overlaid,
    read_run,
    read_stage,
    read_stage_yaml,
    read_yaml,
)
from uae_lightning.stages.common import Stage
from uae_lightning.study.claims import START, Claim, read_claim
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError, closest


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    stages: tuple[StageSpec, ...]
    after: str | None
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """How everything is evaluated."""

    config: Path
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
        if claims is None or claim.over not in arms:
            raise UsageError(
                f"{claim.name} in {path} compares the arm that `claims` names with `over`, another: got {claims!r} and "
                f"{claim.over!r}{closest(claim.over, arms)}"
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
    allowed = ("name", "title", "tables", "after", "run", "stages", "options")
    check_keys(entry, required=("name", "title"), allowed=allowed, where=where)
    check_name(entry["name"], where=f"name of {where}")
    if bool(entry.get("run")) == bool(entry.get("stages")):
        raise UsageError(f"{where} needs either run, the YAML of a run, or stages, a list of them")
    if not isinstance(entry.get("stages") or [], list) or not isinstance(entry.get("run", ""), str):
        raise UsageError(f"{where}: stages must be a list, run the name of a YAML")
    if not isinstance(entry.get("options") or {}, dict) or not isinstance(entry.get("tables", []), list):
        raise UsageError(f"{where}: options must map dotted keys to values, tables must be a list")
    if "run" in entry:
        stages = read_run(path.parent / entry["run"]).stages
    else:
        stages = [read_stage(stage, path, place) for place, stage in enumerate(entry["stages"], 1)]
    options = options | (entry.get("options") or {})
    stages = tuple(replace(stage, options=stage.options | options) for stage in stages)
    return Arm(entry["name"], entry["title"], stages, entry.get("after"), tuple(entry.get("tables", ())))


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
    return Protocol(**entry | files)


def check_number(name: str, of: type, value: Any) -> None:
    try:
        ranges.check(name, of, value)
    except ValueError as error:
        raise UsageError(str(error)) from error


def seeded(stage: StageSpec, seed: int) -> StageSpec:
    """The stage with another seed for its data, noise and initial adapters; the held-out pictures stay the same."""
    return replace(stage, options=stage.options | {"seed_everything": seed})


# ------------------------------------------------------------------------------------------------ what a stage costs

# Seconds of one core for each decoder forward, all else that the stage does included (2 cores of an EPYC with AVX2,
# fp32). They only order the jobs and feed the estimates; a study corrects them by what its own jobs take.
SECONDS_PER_FORWARD = {"DecoderPretrain": 0.017, "EncoderRL": 0.072, "DecoderRL": 0.018, "DecoderMatching": 0.012}
SECONDS_PER_SAMPLE = 0.15  # of an evaluation: pictures and drawings


def seconds_estimate(stage: StageSpec) -> float:
    """On one core."""
    return decoder_forwards(stage) * SECONDS_PER_FORWARD[settings_of(stage)["model"]["class_path"].rsplit(".", 1)[-1]]


def decoder_forwards(stage: StageSpec) -> int:
    """Forward passes of the decoder, counted by picture, that a stage spends on training (not on validation).

    A pass with gradients counts three times: going back costs about as much as two passes forward.

        pre-training   3 for each picture of a batch
        encoder RL     the sampler's steps for each caption of a group
        decoder RL     the sampler's steps for each picture of a group, then 3 for each trained step, and one more where
                       a KL compares it with the reference
        matching       the sampler's steps for each picture of a group, then 3 for each draw of a noise level, one more
                       for the KL, and one more where the policy that sampled is not the one in training
        guidance       one more of the same beside each of these but those of pre-training; beside trained steps with
                       guidance_gradient "conditional" it has no gradients

    Raises:
        UsageError: the stage is none of these, or its YAML or options are wrong.
    """
    try:
        return forwards_of(stage.name, settings_of(stage))
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError) as error:  # unchecked
        StageRun(stage).check()  # says what is wrong, which takes seconds
        raise UsageError(f"stage {stage.name} ({stage.config}): its cost cannot be counted ({error!r})") from error


def forwards_of(name: str, settings: dict[str, Any]) -> int:
    kind, args = settings["model"]["class_path"].rsplit(".", 1)[-1], settings["model"]["init_args"]
    steps, pictures = int(settings["trainer"]["max_steps"]), int(settings["data"]["init_args"]["batch_size"])
    if kind not in SECONDS_PER_FORWARD:
        raise UsageError(f"stage {name}: decoder_forwards cannot count {kind}, add its arithmetic there")
    if kind == "DecoderPretrain":
        return 3 * pictures * steps
    sampling = args["autoencoder"]["sampling"]
    branches = 1 if sampling["guidance"] == 1 else 2
    of_each = branches * sampling["steps"]
    if kind == "DecoderRL":
        trained = args["window"][1] - args["window"][0]
        trained_branches = branches if args["guidance_gradient"] == "both" else 1
        of_step = branches + 2 * trained_branches + branches * (args["kl_beta"] > 0)
        of_each += args["updates_per_batch"] * trained * of_step
    if kind == "DecoderMatching":
        moves = args["updates_per_batch"] * args["update_parts"] > 1 or args["policy_lag"] is not None
        of_each += args["draws"] * (args["updates_per_batch"] * (3 + (args["kl_beta"] > 0)) + moves)
    steps_per_batch = args["updates_per_batch"] * args.get("update_parts", 1)
    return -(-steps // steps_per_batch) * pictures * args["group_size"] * of_each


def settings_of(stage: StageSpec) -> dict[str, Any]:
    """A stage's YAML with its options, and the defaults of its class, but unchecked: parsing takes seconds."""
    configs = map(read_stage_yaml, (stage.config, *stage.overlays))
    settings = functools.reduce(overlaid, configs)
    for key, value in stage.options.items():
        *path, last = key.replace("model.autoencoder.", "model.init_args.autoencoder.").split(".")
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, settings)[last] = value
    module, _, name = settings["model"]["class_path"].rpartition(".")
    classes = (Stage, getattr(importlib.import_module(module), name))
    defaults = {key: p.default for one in classes for key, p in inspect.signature(one).parameters.items()}
    args = settings["model"]["init_args"]
    args["autoencoder"]["sampling"] = vars(Sampling()) | args["autoencoder"].get("sampling", {})
    settings["model"]["init_args"] = defaults | args
    return settings
