"""What changed between two evaluations of the same items: a gain with its interval for every figure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uae_lightning.evaluation import geneval
from uae_lightning.evaluation.image_health import STATISTICS
from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.evaluation.suites import Figures, Items
from uae_lightning.evaluation.unified_bench import summarise_unified
from uae_lightning.scenes.perception import STATED

Interval = dict[str, float | int]


def compare(before: Items, after: Items) -> Figures:
    """After less before, in the form of the figures; positive is more, which is not always better.

    Without the instruments, which do not change, and without distinct-n, which has no values by item.

    Raises:
        ValueError: the evaluations are of different items.
    """
    check_same_items(before, after)
    change = {
        suite: {name: [b - a for a, b in zip(values, after[suite][name], strict=True)] for name, values in of.items()}
        for suite, of in before.items()
        if suite != "instruments"
    }
    gains: Figures = {}
    if "unified_bench" in change:
        gains["unified_bench"] = summarise_unified(change["unified_bench"])
    if "geneval" in change:
        gains["geneval"] = geneval.summarise(change["geneval"])
    if "perception" in change:
        gains["perception"] = means(change["perception"]) | precision_gains(before["perception"], after["perception"])
        gains["perception"]["questions"] = means(change["questions"])
    if "language" in change:
        gains["language"] = means(change["language"])
        if "nll" in change["language"]:
            nll = [[of["language"]["nll"]] for of in (before, after)]
            gains["language"]["perplexity"] = paired_gain(*nll, lambda mean: np.exp(mean[0]))
    if "images" in change:
        pairs = {name: [[of["images"][name], of["images"][f"{name}/original"]] for of in (before, after)]
                 for name in STATISTICS}  # fmt: skip
        gains["images"] = {name: paired_gain(*pair, ratio) for name, pair in pairs.items()}
    return gains


def check_same_items(before: Items, after: Items) -> None:
    sizes = [{(suite, name): len(values) for suite, of in items.items() for name, values in of.items()}
             for items in (before, after)]  # fmt: skip
    different = {key for key in sizes[0] | sizes[1] if sizes[0].get(key) != sizes[1].get(key)}
    different = {key for key in different if key[0] != "instruments"}
    if different:
        suite, name = min(different)
        raise ValueError(
            f"the evaluations are of different items ({suite}/{name} and others): evaluate both with the same "
            "suites, samples, drawings and seed"
        )


def means(change: dict[str, list[float]]) -> dict[str, Interval]:
    """Of what is a figure by itself; names with a slash are parts of ratios."""
    return {name: mean_interval(values) for name, values in change.items() if "/" not in name and len(values) > 1}


def precision_gains(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Interval]:
    """Of the kinds of fact that both state somewhere."""
    gains = {}
    for kind in STATED:
        stated = [np.array(of[f"stated/{kind}"]) for of in (before, after)]
        false = [np.array(of[f"false/{kind}"]) for of in (before, after)]
        if stated[0].any() and stated[1].any():
            pairs = [[s - f, s] for s, f in zip(stated, false, strict=True)]
            gains[f"precision/{kind}"] = paired_gain(*pairs, ratio)
    return gains


def ratio(means: np.ndarray) -> np.ndarray:
    """[2, R] -> [R]; NaN where the resample has nothing to divide by."""
    return means[0] / np.where(means[1] == 0, np.nan, means[1])


def paired_gain(
    before: list, after: list, statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Change of a statistic of means, with the 95% percentile interval of the bootstrap over the items of both.

    Args:
        before, after: [K, n], K values for each of the same n items.
        statistic: means [K, R] of R resamples -> [R].
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (before, after))
    count = a.shape[1]
    rows = np.arange(count)[None]
    picks = np.random.default_rng(seed).integers(count, size=(resamples, count))

    def change(picks: np.ndarray) -> np.ndarray:
        return statistic(b[:, picks].mean(-1)) - statistic(a[:, picks].mean(-1))

    low, high = np.nanquantile(change(picks), [0.025, 0.975])
    return {"mean": float(change(rows)[0]), "low": float(low), "high": float(high), "n": count}
