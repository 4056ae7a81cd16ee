"""How far a figure of held-out items can be trusted: 95% percentile intervals of the bootstrap over items, and seeds.

K lists of values   n items   R resamples   S training seeds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Interval = dict[str, float | int]  # mean, low, high, n
OfMeans = Callable[[np.ndarray], np.ndarray]  # means [K, R] of K lists in R resamples -> the figure [R]

OVERALL = "overall"  # the figure that stands for a suite
LEVEL = 0.95
RESAMPLES = 2000


def first(means: np.ndarray) -> np.ndarray:
    """The mean itself."""
    return means[0]


def ratio(means: np.ndarray) -> np.ndarray:
    """The first over the second, which is that of their sums; NaN where a resample has nothing to divide by."""
    return means[0] / np.where(means[1] == 0, np.nan, means[1])


def interval(lists: Sequence[Sequence[float]], of_means: OfMeans = first, *, resamples: int = RESAMPLES) -> Interval:
    """A figure of the means of K lists with values of the same n items.

    Resamples in which the figure does not exist are left out.

    Raises:
        ValueError: lists of different lengths, fewer than 2 items, a value that is not finite, or a figure that does
            not exist.
    """
    x = checked(lists)
    picks = np.random.default_rng(0).integers(x.shape[1], size=(resamples, x.shape[1]))
    return _summary(of_means(x.mean(1, keepdims=True))[0], of_means(x[:, picks].mean(-1)), x.shape[1])


def gain(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], of_means: OfMeans = first) -> Interval:
    """Change of the figure over the same items, resampled together: the paired bootstrap.

    Raises:
        ValueError: as `interval`; before and after have different items.
    """
    a, b = checked(before), checked(after)
    if a.shape != b.shape:
        raise ValueError(f"before and after are of different items: {a.shape[1]} and {b.shape[1]}")
    count = len(a)
    return interval([*a, *b], lambda means: of_means(means[count:]) - of_means(means[:count]))


def mean_interval(values: Sequence[float], *, resamples: int = RESAMPLES) -> Interval:
    """Mean of one list."""
    return interval([values], resamples=resamples)


def checked(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """[K, n] float64."""
    sizes = {len(values) for values in lists}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            f"an interval needs at least 2 values, and as many of each kind, got {sorted(sizes)}: "
            "validate on more pictures"
        )
    x = np.asarray(lists, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"{(~np.isfinite(x)).sum()} of {x.size} values are not finite")
    return x


def mean_of_means(means: np.ndarray) -> np.ndarray:
    """Of groups that count alike, however many items they have."""
    return means.mean(0)


def grouped_interval(
    groups: Sequence[Sequence[Sequence[float]]],
    of_means: OfMeans = mean_of_means,
    *,
    together: bool = False,
    resamples: int = RESAMPLES,
) -> Interval:
    """A figure of the means of several groups of items (such as GenEval's tasks), measured with one or more training
    seeds.

    Items are resampled within their group, and seeds as a whole, the same for all groups (the pigeonhole bootstrap of
    Owen, 2007). A handful of seeds says little of how seeds vary: print the means of the seeds beside the interval.

    Args:
        groups: [groups][seeds][items]; all seeds of a group have the same items, all groups the same seeds.
        together: the groups are values of the same items.

    Returns:
        mean, low, high, n (items of all groups, or of each where they are the same), seeds.

    Raises:
        ValueError: no group, ragged seeds, a group with fewer than 2 items, a value that is not finite, or a figure
            that does not exist.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(x.ndim != 2 or x.shape[1] < 2 or len(x) != len(arrays[0]) for x in arrays):
        raise ValueError(
            f"groups must be [groups][seeds][items] with the same seeds and at least 2 items each, got shapes "
            f"{[list(x.shape) for x in arrays]}: evaluate more items"
        )
    if bad := sum(int((~np.isfinite(x)).sum()) for x in arrays):
        raise ValueError(f"{bad} values are not finite")
    seeds, sizes, rng = len(arrays[0]), [x.shape[1] for x in arrays], np.random.default_rng(0)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # [R, S]
    shared = rng.integers(sizes[0], size=(resamples, sizes[0])) if together else None
    means = []
    for x in arrays:
        picks = rng.integers(x.shape[1], size=(resamples, x.shape[1])) if shared is None else shared
        of_seeds = np.stack([row[picks].mean(1) for row in x], 1)  # [R, S]
        means.append((weights * of_seeds).sum(1))
    mean = of_means(np.array([[x.mean()] for x in arrays]))[0]
    n = sizes[0] if together else sum(sizes)
    return _summary(mean, of_means(np.array(means)), n) | {"seeds": seeds}


def _summary(mean: float, resampled: np.ndarray, n: int) -> Interval:
    if np.isnan(mean):
        raise ValueError("the figure does not exist: all it would be divided by is 0")
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": n}
