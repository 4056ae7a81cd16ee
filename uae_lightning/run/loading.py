"""The auto-encoder as a run left it, for what uses it and trains nothing: reconstruct, generate, export, Python."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Encoder, Reward
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import build
from uae_lightning.run.spec import read_stage_yaml, read_yaml
from uae_lightning.run.stage_cli import quiet
from uae_lightning.usage import UsageError

AUTOENCODER = "uae_lightning.autoencoder.AutoEncoder"


def load(run: str | Path, config: str | Path | None = None) -> AutoEncoder:
    """The auto-encoder as a run left it, on the CPU; `.to("cuda")` moves it.

    Args:
        run: folder that `uae run` wrote.
        config: the YAML of a stage that says what the parts are; None is that of the run's last stage.

    Raises:
        FileNotFoundError: there is no such run, or it has no stage yet.
    """
    return load_autoencoder(Path(config) if config else None, Path(run))


def load_autoencoder(config: Path | None, weights: Path | None, settings: dict[str, Any] | None = None) -> AutoEncoder:
    """As the YAML of a stage describes it, with the weights of a run.

    Args:
        config: YAML of a stage; None is that of the last stage of `weights`.
        weights: folder of a run, whose latest weights of each part are taken, or of one stage; None takes those the
            YAML names.
        settings: dotted keys below `model.autoencoder` and what they are set to.

    Raises:
        FileNotFoundError: there is no such run or YAML, or the run has no stage yet.
    """
    config, paths = described(config, weights)
    return build_autoencoder(config, paths | (settings or {}))


def described(config: Path | None, weights: Path | None) -> tuple[Path, dict[str, Any]]:
    """The YAML that says what the parts are, and where the weights of each are that do not come from there."""
    stages = run_folder.trained_stages(weights) if weights else []
    paths = {f"{part}.path": path for part, path in run_folder.latest_weights(stages).items()}
    return config or last_config(weights, stages), paths


def load_writer(config: Path | None, weights: Path | None, settings: dict[str, Any] | None = None) -> AutoEncoder:
    """The same for whoever only writes captions: the encoder has weights, projector and decoder have shapes alone."""
    config, paths = described(config, weights)
    parts = parts_of(config, paths | (settings or {}))
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # there is no place for it
            model = build(AutoEncoder, parts).eval()
        model.encoder = build(Encoder, parts["init_args"]["encoder"]).eval()
    except UsageError as error:
        raise UsageError(f"{config}: {error}") from error
    return model


def last_config(run: Path, stages: Sequence[Path]) -> Path:
    if not stages:
        raise FileNotFoundError(f"{run} has no stage that was trained: run `uae run` to its end first")
    return stages[-1] / "config.yaml"


def build_autoencoder(config: Path, settings: dict[str, Any]) -> AutoEncoder:
    parts = parts_of(config, settings)
    try:
        return build(AutoEncoder, parts).eval()
    except UsageError as error:
        raise UsageError(f"{config}: {error}") from error


def parts_of(config: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`read_autoencoder` of a YAML that is there and has an encoder; anything else is a mistake in the call."""
    if not config.is_file():
        raise FileNotFoundError(f"{config} does not exist: give --config the YAML of a stage")
    quiet()
    parts = read_autoencoder(config, settings)
    if parts["init_args"].get("encoder") is None:
        raise UsageError(f"{config} trains without an encoder: give --config the YAML of a stage that has one")
    return parts


def read_autoencoder(config: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a stage's YAML says of its auto-encoder, interpolations resolved: class_path and init_args. Nothing else of
    the YAML is read.

    Args:
        settings: PART.OPTION -> value on top of it.

    Raises:
        UsageError: it is no YAML of a stage.
    """
    content = read_stage_yaml(config)
    try:
        model = OmegaConf.to_container(OmegaConf.create({"model": content.get("model")}), resolve=True)["model"]
        found = model["init_args"]["autoencoder"]
        found = read_stage_yaml(config.parent / found) if isinstance(found, str) else found
        found = found if "class_path" in found else {"class_path": AUTOENCODER, "init_args": found}
        for key, value in settings.items():
            part, name = key.split(".")
            inner = found["init_args"].setdefault(part, {})
            inner = inner.setdefault("init_args", {}) if "class_path" in inner else inner
            inner[name] = str(value) if isinstance(value, Path) else value
        return found
    except OmegaConfBaseException as error:
        raise UsageError(f"{config}: {' '.join(str(error).split())}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{config} has no model.init_args.autoencoder: it is not the YAML of a stage, or it is of version 0.1 "
            "(CHANGELOG.md)"
        ) from error


Judge = TypeVar("Judge", bound=Reward)


def load_reward(path: Path, option: str, kind: type[Judge] = Reward) -> Judge:
    """The reward that a YAML of class_path and init_args describes.

    Args:
        kind: what it has to be.

    Raises:
        UsageError: it is none; the option that names the YAML is named.
    """
    if not path.is_file():
        raise UsageError(f"{option} {path} does not exist: name the YAML of a reward (class_path, init_args)")
    content = read_yaml(path, "a reward")
    if not isinstance(content, dict) or "class_path" not in content:
        raise UsageError(f"{option} {path} is not the YAML of a reward: it has no class_path")
    quiet()
    try:
        return build(kind, content).requires_grad_(False)
    except UsageError as error:
        raise UsageError(f"{option} {path}: {error}") from error


def load_judges(config: Path) -> list[Reward]:
    """What judges held-out pictures in a stage: the reward of its RewardCallback, and what it does not reward.

    Raises:
        UsageError: the YAML names something that is no reward.
    """
    callbacks = (read_stage_yaml(config).get("trainer") or {}).get("callbacks") or []
    given = next((one.get("init_args", {}) for one in callbacks if is_reward_callback(one)), {})
    judges = []
    for described in filter(None, (given.get(key) for key in ("reward", "unrewarded"))):
        if isinstance(described, str):
            described = read_yaml(config.parent / described, "a reward")
        described = OmegaConf.to_container(OmegaConf.create(described), resolve=True)
        quiet()
        try:
            judges.append(build(Reward, described).requires_grad_(False).held_out())
        except UsageError as error:
            raise UsageError(f"{config}: {error}") from error
    return judges


def is_reward_callback(described: Any) -> bool:
    return isinstance(described, dict) and str(described.get("class_path", "")).endswith(".RewardCallback")
