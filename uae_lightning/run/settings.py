"""What a stage was started with, beside what it is to be resumed with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from uae_lightning.usage import UsageError

FREE = ("trainer.default_root_dir", "checkpoint.dirpath", "ckpt_path", "resume", "overwrite")  # of this call, or moved
MIXED = (  # a checkpoint brings its own, or half of the stage would be of one kind and half of another
    "seed_everything", "model.class_path", "model.init_args.seed", "model.init_args.optimizer",
    "model.init_args.lr_scheduler",
    "model.init_args.learning_rates",
    "data.class_path", "data.init_args.seed",
)  # fmt: skip
SEEDS = ("model.init_args.seed", "data.init_args.seed")  # saved by 0.1; since then they are that of seed_everything
HIDDEN = ("${", "***")  # an interpolation and a secret are not saved as what they stand for


def check_resumed(started: dict[str, Any], now: dict[str, Any], place: str) -> list[str]:
    """What differs, as "key before -> now"; what may not is an error.

    Args:
        started: config.yaml of the stage.
        now: the same of this call.
        place: the stage's folder, for the message.

    Raises:
        UsageError: one of `MIXED` differs.
    """
    before, after = dict(leaves(started)), dict(leaves(now))
    for key in SEEDS:
        if before.get(key) == before.get("seed_everything"):
            before.pop(key, None)
    absent = "(not given)"
    changed = {
        key: (before.get(key, absent), after.get(key, absent))
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not key.startswith(FREE)  # null is as good as not given
    }
    said = {
        key: f"{key} {first} -> {second}"
        for key, (first, second) in changed.items()
        if not any(word in str(value) for value in (first, second) for word in HIDDEN)
    }
    if mixed := [text for key, text in said.items() if key.startswith(MIXED)]:
        raise UsageError(
            f"{place} was started with other settings: {', '.join(mixed)}; resume with what it was started with, or "
            "start again with --overwrite, or elsewhere"
        )
    return list(said.values())


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, lists by number."""
    if isinstance(value, (dict, list)) and value:
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
