"""What a study claims: figures before and after, compared item by item, and whether the goal is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uae_lightning.evaluation.intervals import Interval
from uae_lightning.evaluation.statistics import Items, Statistic, check_same_items
from uae_lightning.run.spec import check_keys
from uae_lightning.usage import UsageError, closest

START = "start"  # the name of the untrained weights among the arms


@dataclass(frozen=True)
class Figure:
    """One measure before and after, and the gain of the same items, over all seeds."""

    before: Interval
    after: Interval
    gain: Interval
    of_seeds: list[float]  # the gain of each seed
    better: int  # 1 where more of it is better, -1 where less is, 0 where neither

    def as_json(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "gain": self.gain | {"of_seeds": self.of_seeds}}


def figure(statistic: Statistic, before: list[Items], after: list[Items], better: int = 1) -> Figure:
    """Of the ends of several trainings, and the one start of all or one of each.

    Raises:
        ValueError: before and after are of different items.
    """
    starts = before * (len(after) if len(before) == 1 else 1)
    for start, end in zip(starts, after, strict=True):
        check_same_items(start, end)
    return Figure(
        statistic.over_seeds(before),
        statistic.over_seeds(after),
        statistic.gain_over_seeds(before, after),
        [statistic.gain(start, end)["mean"] for start, end in zip(starts, after, strict=True)],
        better,
    )


def figures(
    about: Mapping[str, Any], before: list[Mapping[str, Items]], after: list[Mapping[str, Items]]
) -> dict[str, Figure]:
    """Every measure that all of the evaluations have, as "suite/name": not the reward, where a later stage has another.

    Args:
        about: by suite, what an evaluation says of its figures (`evaluation.suite.described`).
    """
    return {
        f"{suite}/{name}": figure(
            Statistic(tuple(one["lists"]), one["kind"]),
            [start[suite] for start in before],
            [end[suite] for end in after],
            one["better"],
        )
        for suite, of_suite in about.items()
        for name, one in of_suite["statistics"].items()
        if all(items.get(suite, {}).keys() >= set(one["lists"]) for items in (*before, *after))
    }


def worsened(found: dict[str, Figure]) -> dict[str, Figure]:
    """Figures that got worse, with an interval that excludes 0."""
    return {
        key: one
        for key, one in found.items()
        if (one.better > 0 and one.gain["high"] < 0) or (one.better < 0 and one.gain["low"] > 0)
    }


# ------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Goal:
    text: str
    reached: Callable[[Figure], bool]


GOALS = {
    "rises": Goal("rises, interval above 0", lambda one: one.gain["low"] > 0),
    "falls": Goal("falls, interval below 0", lambda one: one.gain["high"] < 0),
    "no_loss": Goal("does not get worse (no interval on the wrong side of 0)", lambda one: one.gain["high"] >= 0),
    "no_rise": Goal("does not rise (no interval above 0)", lambda one: one.gain["low"] <= 0),
}


def gains(least: float) -> Goal:
    return Goal(f"{least:+} or more, interval above 0", lambda one: one.gain["mean"] >= least and one.gain["low"] > 0)


def grows(times: float, or_ends_above: float) -> Goal:
    return Goal(
        f"{times:g} times or more, or above {or_ends_above}, interval of the gain above 0",
        lambda one: (
            one.gain["low"] > 0
            and (one.after["mean"] >= times * one.before["mean"] or one.after["mean"] > or_ends_above)
        ),
    )


def keeps(within: float) -> Goal:
    return Goal(f"{-within:+} or more", lambda one: one.gain["mean"] >= -within)


def ends(at_least: float) -> Goal:
    return Goal(f"ends at {at_least} or above", lambda one: one.after["mean"] >= at_least)


WITH_NUMBERS = {"gains": gains, "grows": grows, "keeps": keeps, "ends": ends}


@dataclass(frozen=True)
class Claim:
    name: str
    title: str
    figure: str
    goal: Goal
    paper: str = ""  # what the paper reports, on its own scale and data
    over: str = START  # the arm whose figure is the one before
    of: str = ""  # the arm whose figure is the one after; that which the study claims where there is none
    over_suite: str = ""  # of the figure before, where it is another suite's


def read_claim(entry: Any, where: str) -> Claim:
    """`{name: ..., title: ..., figure: SUITE/NAME, goal: rises | no_loss | no_rise | {gains: {least: 0.13}}}`, with
    `paper` where it is known, `over` (and `of`) where an arm is compared with another, and `over_suite` where the
    figure before is that of the same name in another suite."""
    required = ("name", "title", "figure", "goal")
    check_keys(entry, required=required, allowed=(*required, "paper", "over", "of", "over_suite"), where=where)
    if wrong := [key for key, value in entry.items() if key != "goal" and not isinstance(value, str)]:
        raise UsageError(f"{wrong[0]} of {where} must be a text, got {entry[wrong[0]]!r}")
    return Claim(**entry | {"goal": read_goal(entry["goal"], where)})


def read_goal(goal: Any, where: str) -> Goal:
    if isinstance(goal, str) and goal in GOALS:
        return GOALS[goal]
    if isinstance(goal, dict) and len(goal) == 1 and (name := next(iter(goal))) in WITH_NUMBERS:
        try:
            return WITH_NUMBERS[name](**goal[name])
        except TypeError as error:
            raise UsageError(f"goal {name} of {where}: {error}") from error
    known = (*GOALS, *WITH_NUMBERS)
    raise UsageError(f"goal of {where} is not one of {', '.join(known)}: got {goal!r}{closest(str(goal), known)}")


def claimed(claims: tuple[Claim, ...], found: Mapping[str, dict[str, Figure]]) -> list[dict[str, Any]]:
    """The claims as they stand in results.json; those whose figure the evaluation lacks are left out.

    Args:
        found: by the arm before, the figures; arms that are not done are not in it.
    """
    known = [(claim, found.get(claim.over, {}).get(claim.figure)) for claim in claims]
    return [as_json(claim, one) for claim, one in known if one is not None]


def as_json(claim: Claim, one: Figure) -> dict[str, Any]:
    said = {"name": claim.name, "title": claim.title, "paper": claim.paper, "over": claim.over}
    said |= {name: value for name, value in (("of", claim.of), ("over_suite", claim.over_suite)) if value}
    return said | one.as_json() | {"goal": claim.goal.text, "reached": claim.goal.reached(one)}
