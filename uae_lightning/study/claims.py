"""What a study claims: figures before and after, compared item by item, and whether the goal is reached.

Items of an evaluation are {suite: {name: [a value per item]}}; the same evaluation of other weights has the same items
in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uae_lightning.evaluation.intervals import grouped_interval
from uae_lightning.scenes.prompts import TASKS

Items = dict[str, dict[str, list[float]]]
Interval = dict[str, Any]

KINDS = ("class", "color", "size", "position", "count", "background")
LOWER_IS_BETTER = ("perception/hallucination", "perception/false/", "language/repetition", "language/nll", "images/")
NEITHER = ("language/tokens", "language/words", "perception/stated/", "perception/facts_per_caption")


@dataclass(frozen=True)
class Figure:
    """One measure before and after, and the gain of the same items, over all seeds."""

    before: Interval
    after: Interval
    gain: Interval
    of_seeds: list[float]  # the gain of each seed

    def as_json(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "gain": self.gain | {"of_seeds": self.of_seeds}}


def figure(before: list[list[float]], after: list[list[list[float]]]) -> Figure:
    """
    Args:
        before: [groups][items], such as GenEval's tasks; most measures have one group.
        after: [groups][seeds][items].

    Raises:
        ValueError: before and after are of different items.
    """
    if any(len(values) != len(start) for group, start in zip(after, before, strict=True) for values in group):
        raise ValueError("evaluations have different items: evaluate all of them with the same suites and samples")
    gains = [
        [[value - first for value, first in zip(values, start, strict=True)] for values in group]
        for group, start in zip(after, before, strict=True)
    ]
    seeds = range(len(after[0]))
    of_seeds = [sum(sum(group[seed]) / len(group[seed]) for group in gains) / len(gains) for seed in seeds]
    return Figure(
        grouped_interval([[start] for start in before]), grouped_interval(after), grouped_interval(gains), of_seeds
    )


def figures(before: Items, after: list[Items]) -> dict[str, Figure]:
    """Every measure of the evaluations as "suite/name"; of GenEval and of questions the mean of all kinds as well."""
    start, ends = prepared(before), [prepared(items) for items in after]
    found = {
        key: figure([values], [[items[key] for items in ends]]) for key, values in start.items() if len(values) > 1
    }
    for suite in ("geneval", "questions"):
        kinds = [key for key in start if key.startswith(f"{suite}/") and key != f"{suite}/overall"]
        if kinds:
            after_kinds = [[items[key] for items in ends] for key in kinds]
            found[f"{suite}/overall"] = figure([start[key] for key in kinds], after_kinds)
    return found


def prepared(items: Items) -> dict[str, list[float]]:
    """Items as "suite/name"; a statistic of pictures becomes its distance from that of the original."""
    flat = {f"{suite}/{name}": values for suite, measures in items.items() for name, values in measures.items()}
    for key in [key for key in flat if key.startswith("instruments/")]:
        del flat[key]
    for key in [key for key in flat if key.startswith("images/") and key.endswith("/original")]:
        name, originals = key.removesuffix("/original"), flat.pop(key)
        flat[name] = [abs(value - original) for value, original in zip(flat[name], originals, strict=True)]
    return flat


def direction(key: str) -> int:
    """1 where more of a figure is better, -1 where less is, 0 where neither."""
    return 0 if key.startswith(NEITHER) else -1 if key.startswith(LOWER_IS_BETTER) else 1


def worsened(found: dict[str, Figure]) -> dict[str, Figure]:
    """Figures that got worse, with an interval that excludes 0."""
    return {
        key: one
        for key, one in found.items()
        if (direction(key) > 0 and one.gain["high"] < 0) or (direction(key) < 0 and one.gain["low"] > 0)
    }


# ------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Goal:
    text: str
    reached: Callable[[Figure], bool]


RISES = Goal("rises, interval above 0", lambda one: one.gain["low"] > 0)
NO_LOSS = Goal("does not get worse (no interval on the wrong side of 0)", lambda one: one.gain["high"] >= 0)
NO_RISE = Goal("does not rise (no interval above 0)", lambda one: one.gain["low"] <= 0)
GENEVAL = Goal("+0.13 or more, interval above 0", lambda one: one.gain["mean"] >= 0.13 and one.gain["low"] > 0)
SMALL_OBJECTS = Goal(
    "at least doubled, or above 0.9, interval of the gain above 0",
    lambda one: one.gain["low"] > 0 and (one.after["mean"] >= 2 * one.before["mean"] or one.after["mean"] > 0.9),
)


@dataclass(frozen=True)
class Claim:
    name: str
    title: str
    key: str
    goal: Goal
    paper: str = ""  # what the paper reports, on its own scale and data (shared facts: arXiv 2509.09666 v5)


def claims(backbones: list[str]) -> list[Claim]:
    """What is claimed of a run, where `backbones` judge the round trip."""
    return [
        Claim("unified_score", "Unified score", "unified_bench/overall", RISES, "79.0 (UniWorld) -> 86.1"),
        *(Claim(f"unified_{one}", f"- {one}", f"unified_bench/{one}", RISES, "up for all four") for one in backbones),
        Claim("reward", "Reward", "validation/reward", RISES, "up"),
        Claim("geneval_overall", "GenEval tasks, overall", "geneval/overall", GENEVAL, "0.73 -> 0.86"),
        *(Claim(f"geneval_{task}", f"- {task.replace('_', ' ')}", f"geneval/{task}", RISES) for task in TASKS),
        Claim("small_object_recall", "Facts of small objects", "perception/small_objects", SMALL_OBJECTS, "5 -> 45"),
        Claim("perception_overall", "Facts stated", "perception/overall", RISES, "32.5 -> 56.9 (fine-grained)"),
        *(Claim(f"perception_{kind}", f"- {kind}", f"perception/{kind}", RISES) for kind in KINDS),
        Claim("hallucination", "Objects made up", "perception/hallucination", NO_RISE),
        Claim("caption_tokens", "Caption length, tokens", "language/tokens", RISES, "about +120 tokens"),
        Claim("questions_accuracy", "Questions answered", "questions/overall", RISES, "56.3 -> 56.5 (MMT-Bench)"),
        Claim("language_parses", "Captions that parse", "language/parses", NO_LOSS),
        Claim("language_grammatical", "Clauses of a known form", "language/grammatical", NO_LOSS),
        Claim("language_repetition", "Repetition", "language/repetition", NO_RISE),
        Claim("language_nll", "Log-perplexity before RL", "language/nll", NO_RISE),
    ]  # fmt: skip


def claimed(found: dict[str, Figure], backbones: list[str]) -> list[dict[str, Any]]:
    """The claims as they stand in results.json; those whose figure the evaluation lacks are left out."""
    return [
        {"name": claim.name, "title": claim.title, "paper": claim.paper}
        | found[claim.key].as_json()
        | {"goal": claim.goal.text, "reached": claim.goal.reached(found[claim.key])}
        for claim in claims(backbones)
        if claim.key in found
    ]
