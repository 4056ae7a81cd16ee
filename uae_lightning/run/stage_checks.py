"""Settings of a stage that would do nothing, or harm: found before its parts are loaded."""

from __future__ import annotations

import sys

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from uae_lightning import ranges
from uae_lightning.usage import UsageError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")  # the last three are Lightning's other names
FOREIGN_RANGES = {  # of numbers that are not of our classes; of all others only NaN is refused
    "model.init_args.optimizer.init_args.lr": ranges.Positive,
    "trainer.max_steps": ranges.CountOrEndless,
    "trainer.max_epochs": ranges.CountOrEndless,
    "trainer.limit_train_batches": ranges.Positive,
    "trainer.limit_val_batches": ranges.NonNegative,
    "trainer.overfit_batches": ranges.NonNegative,
    "trainer.num_sanity_val_steps": ranges.NaturalOrAll,
    "trainer.reload_dataloaders_every_n_epochs": ranges.Natural,
    "trainer.val_check_interval": ranges.Positive,
    "trainer.check_val_every_n_epoch": ranges.Count,
    "trainer.log_every_n_steps": ranges.Natural,
    "trainer.accumulate_grad_batches": ranges.Count,
    "trainer.num_nodes": ranges.Count,
    "checkpoint.every_n_train_steps": ranges.Natural,
    "checkpoint.save_top_k": ranges.NaturalOrAll,
}


def check_fit(config: Namespace) -> None:
    """What Lightning, or an optimizer, would only find when all is loaded, or never; raises UsageError."""
    trainer = config.trainer
    if trainer.max_steps == -1 and trainer.max_epochs in (-1, None) and trainer.max_time is None:
        raise UsageError("training would never end: set trainer.max_steps")
    if trainer.gradient_clip_val is not None:
        raise UsageError("trainer.gradient_clip_val would do nothing: set model.init_args.max_grad_norm")
    try:
        for key, value in config.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                ranges.check(key, FOREIGN_RANGES.get(key, ranges.Number), value)
        Timer(trainer.max_time)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (MisconfigurationException, TypeError) as error:
        raise UsageError(f"trainer.max_time: {error}") from error


def check_training(config: Namespace) -> None:
    """Raises UsageError where a stage would never be validated, or its options exclude each other.

    Commands that train nothing do not ask.
    """
    trainer, (module, _, name) = config.trainer, config.model.class_path.rpartition(".")
    if trainer.check_val_every_n_epoch is None and not isinstance(trainer.val_check_interval, int | float):
        raise UsageError(f"trainer.val_check_interval must be a number of steps, got {trainer.val_check_interval!r}")
    options = config.model.init_args
    parts = options.autoencoder.init_args  # a stage has the auto-encoder's settings as attributes of its own
    options = Namespace(vars(options) | {one: parts.get(one) for one in ("captioning", "sampling", "condition_on")})
    try:
        getattr(sys.modules[module], name).check_training(options)
    except ValueError as error:
        raise UsageError(f"model.init_args: {error}") from error


def check_precision(trainer: Namespace) -> None:
    if str(trainer.precision or PRECISIONS[0]) not in PRECISIONS:
        raise UsageError(
            f"trainer.precision {trainer.precision} would hold in that type what is trained as well, where small steps "
            f"are rounded away, and what must stay float32: choose one of {', '.join(PRECISIONS)}; weights that are "
            "frozen are halved by `dtype: bfloat16` in the init_args of encoder and decoder"
        )
    if trainer.strategy == "fsdp" and str(trainer.precision).startswith("16"):
        raise UsageError("fsdp has no loss scale for float16: choose trainer.precision bf16-mixed, or strategy ddp")


def check_folder(trainer: Namespace) -> None:
    if not str(trainer.default_root_dir or "").strip():
        raise UsageError("trainer.default_root_dir is empty: name the folder of the stage, such as runs/fit")
