"""The YAML of a run, read and checked: which stages there are, from which YAMLs, with which options."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from uae_lightning.usage import UsageError, closest

ALL = "all"  # stages, in an overlay


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
class Overlay:
    """What lies over the stages of a run where all of `names` are chosen."""

    names: tuple[str, ...]
    stages: dict[str, tuple[list[Path], dict[str, Any]]]  # name, or ALL -> YAMLs and options


@dataclass(frozen=True)
class RunSpec:
    name: str
    stages: list[StageSpec]
    evaluation: EvaluationSpec | None = None
    captions: dict[str, Any] | None = None  # class_path and init_args of a `report.captions.CaptionMarker`


def read_run(path: Path, given: Sequence[str] = ()) -> RunSpec:
    """Reads and checks the list of stages.

    Args:
        given: names of overlays, laid over the stages in the YAML's order; they become part of the run's name.

    Raises:
        FileNotFoundError: the YAML, or that of a stage, is missing.
        UsageError: it does not say what it must, or says something unknown.
    """
    content = read_yaml(path, "a run, such as conf/demo.yaml")
    allowed = ("name", "seed_everything", "stages", "evaluation", "captions", "choices", "overlays")
    check_keys(content, required=("name", "stages"), allowed=allowed, where=str(path))
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
    choices, overlays = read_overlays(content, names, path)
    chosen = choose(given, choices, path)
    seed = {key: content[key] for key in ("seed_everything",) if key in content}
    stages = [laid_over(replace(stage, options=seed | stage.options), overlays, chosen) for stage in stages]
    captions = content.get("captions")
    if captions is not None:
        check_keys(captions, required=("class_path",), allowed=("class_path", "init_args"), where=f"captions in {path}")
    judges = read_evaluation(content.get("evaluation"), path)
    return RunSpec(run_name(content["name"], choices, chosen), stages, judges, captions)


def read_yaml(path: Path, wanted: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: --config is the YAML of {wanted}")
    try:
        content = yaml.safe_load(path.read_text("utf-8-sig"))
        json.dumps(content, default=str, skipkeys=True)  # raises where an alias stands for what it is a part of
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as such") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2025-99-99; nesting without end
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    check_null_bytes(content, f"{path}: ")
    return content


def check_null_bytes(node: Any, where: str) -> None:
    """Raises UsageError where a text below `node` has one: jsonargparse would take it for a path."""
    if isinstance(node, str) and "\0" in node:
        raise UsageError(f"{where} is {node!r}: no path, name or text can hold a null byte")
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        check_null_bytes(value, f"{where}.{key}".replace(": .", ": "))


def read_stage_yaml(path: Path) -> dict[str, Any]:
    """That of one stage, or a YAML laid over one, unparsed; a UsageError where it holds something else."""
    content = read_yaml(path, "a stage, such as conf/scenes/encoder_rl.yaml")
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not the YAML of a stage: it has no keys such as model, data and trainer")
    if "stages" in content:
        raise UsageError(f"{path} lists the stages of a run, and --config wants one stage: name the YAML of one")
    return included(content, path.parent)


def included(value: Any, folder: Path) -> Any:
    """For `include: FILE` in a mapping: what that file in `folder` holds, the mapping's other keys laid over it.

    Raises:
        UsageError: there is no such file, or it holds no mapping.
    """
    if isinstance(value, list):
        return [included(inner, folder) for inner in value]
    if not isinstance(value, dict):
        return value
    value = {key: included(inner, folder) for key, inner in value.items()}
    if not isinstance(name := value.get("include"), str):
        return value
    if not (folder / name).is_file():
        raise UsageError(f"{folder / name} does not exist: include wants a file beside the YAML that names it")
    base = read_yaml(folder / name, "parts of a stage")
    if not isinstance(base, dict):
        raise UsageError(f"{folder / name} cannot be included: it has no keys")
    return overlaid(base, {key: inner for key, inner in value.items() if key != "include"})


def overlaid(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`, key by key; what names another class leaves nothing of the earlier one's options."""
    if overlay.get("class_path", base.get("class_path")) != base.get("class_path"):
        return overlay
    both = {key: overlaid(base[key], overlay[key]) for key in base.keys() & overlay.keys()
            if isinstance(base[key], dict) and isinstance(overlay[key], dict)}  # fmt: skip
    return base | overlay | both


def read_run_or_stage(path: Path, given: Sequence[str], over: Sequence[Path] = ()) -> RunSpec:
    """The run of a YAML that lists stages; of a stage's the run of that one, judged by evaluation.yaml beside it.

    Args:
        given: names of overlays that a run offers.
        over: YAMLs that are laid over a stage's, the later one counts.
    """
    content = read_yaml(path, "a run or of a stage, such as conf/demo.yaml")
    if isinstance(content, dict) and "stages" in content:
        if over:
            raise UsageError(
                f"--config {over[0]} cannot be laid over a run: --with names what {path} lays over its stages"
            )
        return read_run(path, given)
    for one in over:
        read_stage_yaml(one)
    if given:
        raise UsageError(f"--with {' '.join(given)} needs the YAML of a run, and {path} is that of a stage")
    beside = path.parent / "evaluation.yaml"
    evaluation = EvaluationSpec(beside, {}) if beside.is_file() else None
    return RunSpec(path.stem, [StageSpec(path.stem, path, {}, tuple(over))], evaluation)


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
    given = entry.get("config", [])
    names = given if isinstance(given, list) else [given]
    if ("config" in entry and not names) or not all(isinstance(name, str) for name in names):
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


# ------------------------------------------------------------------------------------------------ overlays


def add_overlays(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with", dest="overlays", nargs="+", action="extend", default=[], metavar="NAME",
        help="overlays that the YAML of a run offers, such as sd35_large 80gb",
    )  # fmt: skip


def read_overlays(content: dict[str, Any], stages: list[str], path: Path) -> tuple[list[list], list[Overlay]]:
    """Names that exclude each other, the default first, None where it is nothing; and what is laid over the stages."""
    choices, entries = content.get("choices") or [], content.get("overlays") or {}
    if not isinstance(choices, list) or not all(isinstance(choice, list) and choice for choice in choices):
        raise UsageError(f"choices in {path} must be a list of lists of names")
    if not isinstance(entries, dict):
        raise UsageError(f"overlays in {path} must map names to what is laid over each stage")
    overlays = [read_overlay(str(key), entry, stages, path) for key, entry in entries.items()]
    names = [name for choice in choices for name in choice]
    toggles = [overlay.names[0] for overlay in overlays if len(overlay.names) == 1 and overlay.names[0] not in names]
    for name in names + toggles:
        check_name(name, where=f"an overlay in {path}")
    for name in (name for overlay in overlays for name in overlay.names if name not in names + toggles):
        raise UsageError(f"{name!r} in overlays of {path} cannot be chosen{closest(name, names + toggles)}")
    return choices + [[None, name] for name in toggles], overlays


def read_overlay(key: str, entry: Any, stages: list[str], path: Path) -> Overlay:
    where = f"overlay {key} in {path}"
    check_keys(entry, required=(), allowed=(ALL, *stages), where=where)
    laid = {}
    for stage, over in entry.items():
        over = {"config": over} if isinstance(over, str | list) else over
        check_keys(over, required=(), allowed=("config", "options"), where=f"{stage} of {where}")
        laid[stage] = read_configs(over, path, f"{stage} of {where}", example="trainer.max_steps: 40")
    return Overlay(tuple(key.split("+")), laid)


def choose(given: Sequence[str], choices: list[list], path: Path) -> list:
    """One name of each choice: the given one, or else its default."""
    known = [name for choice in choices for name in choice if name]
    for name in given:
        if name not in known:
            offered = f"overlays: {', '.join(known)}" if known else "it offers none"
            raise UsageError(f"--with {name}: no overlay in {path} is called so{closest(name, known)} ({offered})")
    for choice in choices:
        if len(both := [name for name in choice if name in given]) > 1:
            raise UsageError(f"--with {' '.join(both)}: they exclude each other, choose one")
    return [next((name for name in choice if name in given), choice[0]) for choice in choices]


def laid_over(stage: StageSpec, overlays: list[Overlay], chosen: list) -> StageSpec:
    for overlay in overlays:
        for name in (ALL, stage.name):
            if set(overlay.names) <= set(chosen) and name in overlay.stages:
                configs, options = overlay.stages[name]
                stage = replace(stage, overlays=(*stage.overlays, *configs), options=stage.options | options)
    return stage


def run_name(name: str, choices: list[list], chosen: list) -> str:
    """With the overlays that are no defaults."""
    return "_".join([name, *(n for choice, n in zip(choices, chosen, strict=True) if n != choice[0])])


# ------------------------------------------------------------------------------------------------ pieces of a YAML


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


def fit_args(stage: StageSpec, overrides: list[str], place: Path, weights: dict[str, Path]) -> list[str]:
    """`fit` and its options: configs, then the stage's options, then the run's, then what the pipeline decides."""
    configs = [f"--config={config}" for config in (stage.config, *stage.overlays)]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in stage.options.items()}
    options = [f"--{key}={text}" for key, text in texts.items()]
    handed = [f"--model.autoencoder.{part}.path={path}" for part, path in sorted(weights.items())]
    root = f"--trainer.default_root_dir={place}"
    return ["fit", *configs, *options, *overrides, root, *handed]
