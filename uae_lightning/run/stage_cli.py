"""One stage from YAML and dotted options: LightningCLI with the habits of this project."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import lightning as L
import transformers
import yaml
from jsonargparse import Namespace, set_loader, set_parsing_settings
from jsonargparse._optionals import get_omegaconf_loader  # of its mode, which has no other name
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from callbacks import CurvesOnce, FinalValidation, StageCheckpoint, StageClock
from uae_lightning import ranges
from uae_lightning.files import check_writable, naming, recover, replacing
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.parallel.ending import EndTogether
from uae_lightning.parallel.launch import is_main, own_ranks
from uae_lightning.parallel.locking import locked
from uae_lightning.parallel.strategy import ShardedStrategy
from uae_lightning.run import folder as run_folder
from uae_lightning.run import tracked
from uae_lightning.run.class_paths import check_class_paths
from uae_lightning.run.curves import StageCurves, settings_of
from uae_lightning.run.masking import masked
from uae_lightning.run.memory import freed_memory_kept
from uae_lightning.run.moved import check_seeds
from uae_lightning.run.parser_messages import explain
from uae_lightning.run.settings import check_resumed, leaves
from uae_lightning.run.spec import included, read_stage_yaml
from uae_lightning.run.stage_checks import check_fit, check_folder, check_precision, check_training
from uae_lightning.stages.common import Stage
from uae_lightning.usage import UsageError

set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # "omegaconf+" with subcommands needs it
PARSER_MODE = "omegaconf+"  # "omegaconf" resolves ${...} before options are merged and so ignores them
load_yaml = get_omegaconf_loader(PARSER_MODE)
set_loader(PARSER_MODE, lambda text: included(load_yaml(text), Path()), (yaml.YAMLError,))  # in the folder of the YAML

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/fit",  # everything a stage leaves behind lies here
    "max_epochs": -1,  # stages count optimiser steps
    "num_sanity_val_steps": -1,  # the whole validation set before training: the "before" of every gain
    "check_val_every_n_epoch": None,  # `val_check_interval` counts batches across epochs
    "log_every_n_steps": 1,
    "use_distributed_sampler": False,  # Lightning's shuffles even where shuffling is off; the data modules shard
    "enable_model_summary": False,
}
CHECKPOINT_DEFAULTS = {  # one file, replaced each time; AtomicCheckpointIO makes the replacement atomic
    "checkpoint.filename": "last",
    "checkpoint.enable_version_counter": False,
    "checkpoint.every_n_train_steps": 20,
}
OF_LEARN = r"(--model(?:\.init_args)?\.learn)\.(\w+)"
NULLS = ("null", "Null", "NULL", "~")  # YAML's
DESCRIPTIONS = {
    "fit": "Train one stage. Options are dotted keys of the YAML: --trainer.max_steps 20, "
    "--model.init_args.group_size 8; --print_config shows the outcome.",
    "validate": "Score the round trip of one stage on the held-out pictures, without training.",
}


class StageCLI(LightningCLI):
    """`uae fit` and `uae validate`."""

    resume_from: Path | None = None

    def __init__(
        self,
        parsed: Namespace | None = None,
        locks: ExitStack | None = None,
    ) -> None:
        """Reads `sys.argv`, unless what `ParsedStage` has made of it is given."""
        self.clock, self.locks = StageClock(time.monotonic()), locks
        parser = {"parser_mode": PARSER_MODE, "exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            Stage,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=None,  # Lightning's comes after the first event file, see `before_fit`
            parser_kwargs={"prog": "uae", **parser}
            | {name: {"description": text, **parser} for name, text in DESCRIPTIONS.items()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints resume; they never say which class to train
            args=parsed,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in DESCRIPTIONS}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the one seed: of weights that start at random, of noise and captions, and of the data."""
        help_ = "of weights that start at random, of noise and captions, and of the data (default: 0)"
        parser.add_argument("--seed_everything", type=ranges.Seed, default=0, help=help_)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(StageCheckpoint, "checkpoint")
        parser.set_defaults(CHECKPOINT_DEFAULTS)
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=run_folder.checkpoints)
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            for flag, text in [
                ("--resume", "continue from the last checkpoint in trainer.default_root_dir, if there is one"),
                ("--overwrite", "clear what an earlier stage left in trainer.default_root_dir and start again"),
            ]:
                parser.add_argument(flag, action="store_true", help=text)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Namespace | None) -> None:
        if args is not None:
            self.config = args
            return
        check_yamls(sys.argv[1:])
        super().parse_arguments(parser, None)
        check_precision(self.config[self.config.subcommand].trainer)
        if self.config.subcommand == "fit":
            check_fit(self.config.fit)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let hyperparameters in a checkpoint replace the YAML's (Lightning #21116)."""

    def before_instantiate_classes(self) -> None:
        check_class_paths(self.config[self.subcommand])
        tracked.check_packages(self.config[self.subcommand].trainer)
        if self.subcommand == "fit":
            config = self.config.fit
            check_training(config)
            check_folder(config.trainer)
            # both flags are for this call alone: saved in config.yaml they would act on whoever reuses it
            flags = {name: config.pop(name) for name in ("resume", "overwrite")}
            folder = Path(config.trainer.default_root_dir)
            check_writable(folder / "config.yaml", "--trainer.default_root_dir")
            if is_main():
                if self.locks is not None:
                    self.locks.enter_context(locked(folder, f"the stage {folder}"))
                recover(run_folder.last_checkpoint(folder))
            # rank 0 may have begun to write by now: it alone asks whether the folder holds an earlier stage
            self.resume_from = run_folder.start_point(folder, **flags) if is_main() or flags["resume"] else None
            if self.resume_from:
                self.check_settings(folder, config)

    def instantiate_classes(self) -> None:
        trainer = self.config[self.subcommand].trainer
        with tracked.going_on(trainer, Path(trainer.default_root_dir)) if self.resume_from else nullcontext():
            super().instantiate_classes()

    def check_settings(self, folder: Path, config: Namespace) -> None:
        """Says in which settings `config` differs from what the stage was started with, or raises UsageError."""
        started = folder / "config.yaml"
        if not started.exists():
            return
        now = self._parser("fit").dump(config, skip_unset=False)
        changed = check_resumed(read_stage_yaml(started), yaml.safe_load(now), str(folder))
        if changed and is_main():
            print(f"{folder} was started with other settings: {', '.join(changed)}", flush=True)

    def _run_subcommand(self, subcommand: str) -> None:
        with naming(Path(self.config[subcommand].trainer.default_root_dir)), freed_memory_kept():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        if self.resume_from:
            self.config_init.fit.ckpt_path = str(self.resume_from)
        if is_main():  # only now that all parts are loaded: a mistake in the call costs no earlier results
            folder = Path(self.config.fit.trainer.default_root_dir)
            if not self.resume_from:
                run_folder.clear_stage(folder)
            written = self.write_config(folder / "config.yaml")
            for logger in self.trainer.loggers:
                tracked.tell_settings(logger, settings_of(yaml.safe_load(written)))
            tracked.keep_runs(self.trainer.loggers, folder)

    def write_config(self, file: Path) -> str:
        """What the stage is trained with, secrets left out. It comes first: by it the folder is known as a stage's."""
        text = self._parser("fit").dump(masked(self.config.fit), skip_unset=False, skip_validation=True)
        with replacing(file) as partial:
            partial.write_text(text)
        return text

    def instantiate_trainer(self, **kwargs) -> L.Trainer:
        config = self.config_init[self.subcommand].trainer
        if config.logger is None or self.subcommand != "fit":
            # a validation alone prints its numbers and leaves the stage's folder, and a tracker's run, as they are
            kwargs["logger"] = StageCurves(config.default_root_dir) if self.subcommand == "fit" else False
        elif not isinstance(config.logger, bool):  # the report and the app read TensorBoard's files
            loggers = config.logger if isinstance(config.logger, list) else [config.logger]
            has_curves = any(isinstance(logger, TensorBoardLogger) for logger in loggers)
            kwargs["logger"] = loggers if has_curves else [StageCurves(config.default_root_dir), *loggers]
        plugins = config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if config.strategy == "fsdp":
            kwargs["strategy"] = ShardedStrategy()
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except TypeError as error:
            raise UsageError(f"an option of trainer is wrong: {error}") from error
        trainer.callbacks[:0] = [EndTogether(), FinalValidation(), CurvesOnce(), self.clock]
        return trainer


class ParsedStage(StageCLI):
    """A stage's configuration, parsed and checked, nothing built: mistakes are found before time is spent."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None:
        check_class_paths(self.config[self.subcommand])
        if self.subcommand == "fit":
            check_folder(self.config.fit.trainer)

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def run_stage(args: list[str], *, parsed: Namespace | None = None, lock: bool = True) -> StageCLI:
    """`uae fit ...` or `uae validate ...` in this process.

    Args:
        args: the command, which Lightning starts the other ranks with.
        parsed: what is known of it already; None parses it.
        lock: keeps others from writing to the stage's folder.
    """
    quiet()
    with errors_explained(), command_line(args), own_ranks(), ExitStack() as locks:
        return StageCLI(parsed, locks if lock else None)


def parse_stage(args: list[str]) -> ParsedStage:
    """Checks the same command line and stops there."""
    with errors_explained(), command_line(args):
        return ParsedStage()


@contextmanager
def command_line(args: list[str]) -> Iterator[None]:
    """`sys.argv` as if `uae ARGS` had been typed: Lightning starts the other ranks of a stage with that command."""
    before, sys.argv = sys.argv, [sys.argv[0], *nothing_learnt(args)]
    try:
        yield
    finally:
        sys.argv = before


def nothing_learnt(args: list[str]) -> list[str]:
    """`--model.learn.decoder=null` as `--model.learn={decoder: null}`, which leaves the other parts as they are.

    jsonargparse (4.53) hands a None that is set inside of a dataclass on as the text "None", and refuses it.
    """
    found: list[str] = []
    for word in args:
        apart = found and re.fullmatch(OF_LEARN, found[-1])  # `--model.learn.decoder null`
        option, value = (found.pop(), word) if apart else word.partition("=")[::2]
        if (match := re.fullmatch(OF_LEARN, option)) and value.strip() in NULLS:
            found.append(f"{match[1]}={{{match[2]}: null}}")
        else:
            found += [option, word] if apart else [word]
    return found


def check_yamls(args: list[str]) -> None:
    """Raises UsageError for what jsonargparse, which names no file and quotes what is in it, would not explain."""
    check_seeds(word.partition("=")[0].lstrip("-") for word in args)
    for name in configs_of(args):
        check_seeds((key for key, _ in leaves(read_stage_yaml(Path(name)))), f"{name}: ")


def configs_of(args: list[str]) -> list[str]:
    """What `--config YAML`, `-c YAML` and `--config=YAML` name."""
    apart = [value for name, value in zip(args, args[1:], strict=False) if name in ("--config", "-c")]
    return apart + [word.partition("=")[2] for word in args if word.startswith("--config=")]


def quiet() -> None:
    """Progress and errors stay; advertisements, and advice that does not fit these stages, go."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()  # of loading; the one of training is Lightning's
    for message in (
        ".*does not have many workers.*",  # pictures are drawn in the loop; the cores are busy already
        ".*no pre-optimization state was saved.*",  # the state after a step is what a checkpoint is for
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*treespec, LeafSpec.*is deprecated.*",
        ".*in eval mode at the start of training.*",  # frozen parts are, on purpose
        ".*recommended to use `self.log.*sync_dist=True.*",  # what is logged is the same on all ranks
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nobody writes to it in place
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def errors_explained() -> Iterator[None]:
    try:
        yield
    except argparse.ArgumentError as error:
        raise UsageError(explain(str(error), parser_keys())) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from error
    except ValueError as error:
        if "Does not validate against any of" not in str(error):
            raise
        raise ValueError(explain(str(error), parser_keys())) from error  # jsonargparse wraps what a constructor raises


def parser_keys() -> list[str]:
    """The options that are the same for all stages."""
    groups = {"trainer": L.Trainer, "checkpoint": StageCheckpoint}
    dotted = [f"{key}.{name}" for key, owner in groups.items() for name in inspect.signature(owner.__init__).parameters]
    return [*dotted, "config", "seed_everything", "resume", "overwrite", "ckpt_path", "model", "data"]
