"""A run as it is trained: its stages, parsed and checked once for all that is done with them, and its judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.evaluation.suite import Evaluation
from uae_lightning.interfaces import Encoder, Reward
from uae_lightning.run import folder as run_folder
from uae_lightning.run.class_paths import check_class_paths
from uae_lightning.run.spec import EvaluationSpec, RunSpec, StageSpec, fit_args, read_yaml
from uae_lightning.run.stage_checks import check_training
from uae_lightning.run.stage_cli import ParsedStage, errors_explained, parse_stage
from uae_lightning.usage import UsageError

Weights = dict[str, Path]  # component -> folder


@dataclass(frozen=True)
class StageRun:
    """One stage: what `uae fit` is called with, and what that means.

    Args:
        overrides: dotted options of this call, on top of the stage's own.
        place: the stage's folder.
    """

    spec: StageSpec
    overrides: Sequence[str] = ()
    place: Path = Path("unused")

    @property
    def name(self) -> str:
        return self.spec.name

    def arguments(self, weights: Weights) -> list[str]:
        """`fit` and its options, with the weights of earlier stages."""
        return fit_args(self.spec, [*self.overrides], self.place, weights)

    @cached_property
    def parsed(self) -> ParsedStage:
        """What the YAMLs and options say, none of it built; a UsageError names the stage."""
        try:
            return parse_stage(self.arguments({}))
        except UsageError as error:
            raise self.mistake(error) from error

    @property
    def config(self) -> Namespace:
        return self.parsed.config.fit

    def starting_from(self, weights: Weights) -> Namespace:
        """A copy of the configuration in which these parts start from these folders. An interpolation that names the
        path of a part still stands for the one in the YAML."""
        config = self.config.clone()
        for part, path in weights.items():
            described = config.model.init_args.autoencoder.init_args.get(part)
            if described is None or "path" not in (described.get("init_args") or {}):
                raise self.mistake(f"an earlier stage trained the {part}, and this one has none with a `path`")
            described.init_args.path = str(path)
        return config

    def check(self) -> None:
        """Raises UsageError where a run cannot train it, or could not tell afterwards what it changed."""
        try:
            check_training(self.config)
            check_callbacks(self.config.trainer)
        except UsageError as error:
            raise self.mistake(error) from error

    def mistake(self, what: object) -> UsageError:
        return UsageError(f"stage {self.name} ({self.spec.config}): {what}")


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


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    stages: list[StageRun]
    judges: Namespace | None  # what `parse_evaluation` returned
    captions: dict[str, Any] | None = None  # class_path and init_args of what marks them in the report

    def weights(self, count: int | None = None) -> Weights:
        """The latest of each part that the first `count` stages, or all, have trained."""
        return run_folder.latest_weights([stage.place for stage in self.stages[:count]])


def compile_run(spec: RunSpec, folder: Path, overrides: Sequence[str] = ()) -> Run:
    """The run in `folder`. Its stages are parsed when they are first looked at, and not again."""
    stages = [StageRun(stage, overrides, folder / stage.name) for stage in spec.stages]
    judges = parse_evaluation(spec.evaluation) if spec.evaluation else None
    return Run(spec.name, folder, stages, judges, spec.captions)


# ------------------------------------------------------------------------------------------------ judges


def parse_evaluation(spec: EvaluationSpec) -> Namespace:
    """The configuration of an `Evaluation`, checked, nothing built."""
    if not isinstance(read_yaml(spec.config, "an evaluation, such as conf/scenes/evaluation.yaml"), dict):
        raise UsageError(f"{spec.config} is not the YAML of an evaluation: it has no keys such as data and suites")
    options = {key: value if isinstance(value, str) else json.dumps(value) for key, value in spec.options.items()}
    args = [f"--evaluation={spec.config}", *(f"--evaluation.{key}={text}" for key, text in options.items())]
    try:
        with errors_explained():
            config = evaluation_parser().parse_args(args)
            check_class_paths(config)
    except UsageError as error:
        raise UsageError(f"{spec.config}: {error}") from error
    return config


def evaluation_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Evaluation, "evaluation", sub_configs=True)
    return parser


# ------------------------------------------------------------------------------------------------ objects


def build_evaluation(config: Namespace) -> Evaluation:
    with errors_explained():
        return evaluation_parser().instantiate(config).evaluation


def build_autoencoder(config: Namespace) -> AutoEncoder:
    return build(AutoEncoder, config.model.init_args.autoencoder).eval()


def build_encoder(config: Namespace) -> Encoder:
    return build(Encoder, config.model.init_args.autoencoder.init_args.encoder).eval()


def build_reward(config: Namespace) -> Reward | None:
    """What the stage is trained on; None where its YAML has no RewardCallback."""
    callbacks = [c for c in config.trainer.callbacks or [] if c.class_path.endswith(".RewardCallback")]
    return build(Reward, callbacks[0].init_args.reward) if callbacks else None


def build(kind: type, config: Namespace | dict[str, Any]) -> Any:
    """The object of this kind that a class_path and its init_args describe; a dict is checked first."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "it")
    with errors_explained():
        if isinstance(config, Namespace):
            return parser.instantiate(Namespace(it=config)).it
        parsed = parser.parse_object({"it": config})
        check_class_paths(parsed)
        return parser.instantiate(parsed).it
