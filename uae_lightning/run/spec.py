"""The YAML of a run, read and checked: which stages there are, from which YAMLs, with which options."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uae_lightning.usage import UsageError, closest


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


def read_run(path: Path) -> RunSpec:
    """Reads and checks the list of stages.

    Raises:
        FileNotFoundError: the YAML, or that of a stage, is missing.
        UsageError: it does not say what it must, or says something unknown.
    """
    content = read_yaml(path, "a run, such as conf/demo.yaml")
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
    return content


def is_run(path: Path) -> bool:
    """Whether the YAML lists stages; else it is that of one stage."""
    content = read_yaml(path, "a run or of a stage, such as conf/demo.yaml")
    return isinstance(content, dict) and "stages" in content


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


def fit_args(stage: StageSpec, overrides: list[str], place: Path, weights: dict[str, Path]) -> list[str]:
    """`fit` and its options: configs, then the stage's options, then the run's, then what the pipeline decides."""
    configs = [f"--config={config}" for config in (stage.config, *stage.overlays)]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in stage.options.items()}
    options = [f"--{key}={text}" for key, text in texts.items()]
    handed = [f"--model.autoencoder.{part}.path={path}" for part, path in sorted(weights.items())]
    root = f"--trainer.default_root_dir={place}"
    return ["fit", *configs, *options, *overrides, root, *handed]
