"""How far a mean over held-out pictures can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, float | int]:
    """Mean with its percentile bootstrap interval. Of paired differences this is the paired bootstrap.

    Raises:
        ValueError: fewer than 2 values, or one that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {x.size}: validate on more pictures")
    if not np.isfinite(x).all():
        raise ValueError(f"{(~np.isfinite(x)).sum()} of {len(x)} values are not finite")
    picks = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    tail = (1 - level) / 2
    low, high = np.quantile(x[picks].mean(1), [tail, 1 - tail])
    return {"mean": float(x.mean()), "low": float(low), "high": float(high), "n": len(x)}


def grouped_interval(
    groups: Sequence[Sequence[Sequence[float]]],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int]:
    """Mean of the means of several groups of items (such as GenEval's tasks), measured with one or more training seeds.

    Items are resampled within their group, and seeds as a whole, the same for all groups (the pigeonhole bootstrap of
    Owen, 2007). A handful of seeds says little of how seeds vary: print the means of the seeds beside the interval.

    Args:
        groups: [groups][seeds][items]; all seeds of a group have the same items, all groups the same seeds.

    Returns:
        mean, low, high, n (items of all groups), seeds.

    Raises:
        ValueError: no group, ragged seeds, a group with fewer than 2 items, or a value that is not finite.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(x.ndim != 2 or x.shape[1] < 2 or len(x) != len(arrays[0]) for x in arrays):
        raise ValueError(
            f"groups must be [groups][seeds][items] with the same seeds and at least 2 items each, got shapes "
            f"{[list(x.shape) for x in arrays]}: evaluate more items"
        )
    if bad := sum(int((~np.isfinite(x)).sum()) for x in arrays):
        raise ValueError(f"{bad} values are not finite")
    seeds, rng = len(arrays[0]), np.random.default_rng(seed)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # [R, S]
    means = np.zeros(resamples)
    for x in arrays:
        picks = rng.integers(x.shape[1], size=(resamples, x.shape[1]))
        of_seeds = np.stack([row[picks].mean(1) for row in x], 1)  # [R, S]
        means += (weights * of_seeds).sum(1) / len(arrays)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    total = sum(x.shape[1] for x in arrays)
    mean = float(np.mean([x.mean() for x in arrays]))
    return {"mean": mean, "low": float(low), "high": float(high), "n": total, "seeds": seeds}
