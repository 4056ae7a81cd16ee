"""From a stage and its judges to a file of figures, and one of the values behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from torch import nn

from uae_lightning.evaluation.statistics import Items
from uae_lightning.evaluation.suite import Suite, described, evaluate
from uae_lightning.files import write_json
from uae_lightning.interfaces import Encoder, Reward
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import (
    StageRun,
    Weights,
    build_autoencoder,
    build_encoder,
    build_evaluation,
    build_reward,
)
from uae_lightning.run.masking import masked
from uae_lightning.run.memory import freed_memory_kept
from uae_lightning.run.provenance import provenance
from uae_lightning.run.stage_cli import quiet


def evaluate_into(
    output: Path,
    stage: StageRun,
    judges: Namespace,
    weights: Weights,
    *,
    suites: list[str] | None = None,
    without: Sequence[str] = (),
    seed: int = 0,
    command: str,
    keep_earlier: bool = False,
) -> dict[str, Any]:
    """Evaluates a stage's parts with these weights and writes figures to `output`, values to its `.items.json`.

    Args:
        judges: what `parse_evaluation` returned.
        weights: folder of each part that does not start from where the YAML says.
        suites: what to measure; None is all that the data allows, `without` is left out of it.
        keep_earlier: a result that is there already counts, if it was made with the same settings and seed.

    Returns:
        What `output` holds.
    """
    began = time.monotonic()
    quiet()
    config = stage.starting_from(weights)
    evaluation = build_evaluation(judges)
    chosen = evaluation.chosen(suites, without)
    settings = masked(as_json({"model": config.model, "evaluation": judges.evaluation, "suites": list(chosen)}))
    if keep_earlier and (earlier := same_evaluation(output, settings, seed)):
        return earlier
    model, reward = build_autoencoder(config), build_reward(config)

    def reference() -> Encoder:  # perplexity is that under the encoder before RL
        return build_encoder(stage.config) if "encoder" in weights else model.encoder

    with freed_memory_kept():
        figures, items = evaluate(model, evaluation, chosen, seed=seed, make_reference=reference)
    items = rounded(items)
    record = {"figures": figures, "suites": described(chosen, figures, items)}
    record |= {"reward": reward.title() if reward else None, "kin_of_reward": kin(reward, evaluation.suites.values())}
    record |= provenance(command) | {"seed": seed, "settings": settings}
    record["minutes"] = round((time.monotonic() - began) / 60, 2)
    write_json(run_folder.items_of(output), items)  # first: figures are there once all is
    write_json(output, record)
    return record


def same_evaluation(output: Path, settings: Any, seed: int) -> dict[str, Any] | None:
    """What lies there already, if it was made with the same settings."""
    if not (output.is_file() and run_folder.items_of(output).is_file()):
        return None
    record = run_folder.read_json(output)
    return record if (record.get("settings"), record.get("seed")) == (settings, seed) else None


def rounded(items: dict[str, Items]) -> dict[str, Items]:
    return {suite: {name: [round(v, 6) for v in values] for name, values in of.items()} for suite, of in items.items()}


def as_json(namespaces: dict[str, Any]) -> dict[str, Any]:
    """Plain values, as they come back from a file; where a YAML was found is no part of them."""
    plain = {key: value.as_dict() if isinstance(value, Namespace) else value for key, value in namespaces.items()}
    return without_places(json.loads(json.dumps(plain, default=str)))


def without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items() if key != "__path__"}
    return [without_places(inner) for inner in value] if isinstance(value, list) else value


def kin(reward: Reward | None, suites: Iterable[Suite]) -> list[str]:
    """Names of the judges that share weights with the reward: no independent ones of it."""
    own = fingerprints(reward) if reward is not None else set()
    judges = {name: judge for suite in suites for name, judge in suite.judges().items()}
    return [name for name, judge in judges.items() if own & fingerprints(judge)]


def fingerprints(module: nn.Module) -> set[tuple]:
    """One for each larger weight tensor; the same numbers have the same."""
    weights = (weight.detach().double() for weight in module.parameters() if weight.numel() > 1000)
    return {(tuple(weight.shape), weight.sum().item(), weight.square().sum().item()) for weight in weights}
