"""Figures as plain values say what they are made of: whoever has the values of two evaluations, and this, can compare
them without the suites.

Values of an evaluation are {list: [a value per item]}; the same evaluation of other weights has the same items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from uae_lightning.evaluation.intervals import (
    Interval,
    first,
    gain,
    grouped_interval,
    interval,
    mean_of_means,
    ratio,
)

Items = dict[str, list[float]]  # name -> a value per item, in an order that no weights change
Figures = dict[str, Interval]
Kind = Literal["mean", "ratio", "remainder", "exp", "tasks"]

OF_MEANS = {
    "mean": first,
    "ratio": ratio,
    "remainder": lambda means: ratio(np.stack([means[0] - means[1], means[0]])),  # share that is left of the first
    "exp": lambda means: np.exp(means[0]),
    "tasks": mean_of_means,  # lists of different items
}


@dataclass(frozen=True)
class Statistic:
    """A figure of the means of some lists."""

    lists: tuple[str, ...]
    kind: Kind = "mean"

    def interval(self, items: Items) -> Interval:
        if self.kind == "tasks":
            found = grouped_interval([[items[name]] for name in self.lists])
            del found["seeds"]
            return found
        return interval([items[name] for name in self.lists], OF_MEANS[self.kind])

    def gain(self, before: Items, after: Items) -> Interval:
        """After less before, item by item; positive is more, which is not always better."""
        if self.kind == "tasks":
            change = {name: [b - a for a, b in zip(before[name], after[name], strict=True)] for name in self.lists}
            return self.interval(change)
        old, new = ([items[name] for name in self.lists] for items in (before, after))
        return gain(old, new, OF_MEANS[self.kind])

    def over_seeds(self, seeds: Sequence[Items]) -> Interval:
        return grouped_interval(self._groups(seeds), OF_MEANS[self.kind], together=self.kind != "tasks")

    def gain_over_seeds(self, before: Sequence[Items], after: Sequence[Items]) -> Interval:
        """Of several trainings, each over the start of its own or all over the one there is."""
        starts = [*before] * (len(after) if len(before) == 1 else 1)
        of_means, count = OF_MEANS[self.kind], len(self.lists)
        if self.kind in ("mean", "tasks"):  # the change of means is the mean change
            groups = [
                [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(old, new, strict=True)]
                for old, new in zip(self._groups(starts), self._groups(after), strict=True)
            ]
            return grouped_interval(groups, of_means, together=self.kind != "tasks")
        both = self._groups(starts) + self._groups(after)
        return grouped_interval(both, lambda means: of_means(means[count:]) - of_means(means[:count]), together=True)

    def _groups(self, seeds: Sequence[Items]) -> list[list[list[float]]]:
        return [[items[name] for items in seeds] for name in self.lists]


def statistics_of(record: dict[str, Any]) -> dict[str, dict[str, Statistic]]:
    """What the figures of an evaluation are made of, by suite."""
    return {
        suite: {name: Statistic(tuple(one["lists"]), one["kind"]) for name, one in about["statistics"].items()}
        for suite, about in record["suites"].items()
    }


def compare(before: Mapping[str, Statistic], after: Mapping[str, Statistic], *items: Items) -> Figures:
    """Gains of the figures that both evaluations have; `items` are theirs.

    Raises:
        ValueError: the evaluations are of different items.
    """
    check_same_items(*items)
    return {name: one.gain(*items) for name, one in before.items() if name in after}


def check_same_items(before: Items, after: Items) -> None:
    sizes = [{name: len(values) for name, values in items.items()} for items in (before, after)]
    if different := {name for name in sizes[0] | sizes[1] if sizes[0].get(name) != sizes[1].get(name)}:
        raise ValueError(
            f"the evaluations are of different items ({min(different)} and others): evaluate both with the same "
            "suites, samples, drawings and seed"
        )
