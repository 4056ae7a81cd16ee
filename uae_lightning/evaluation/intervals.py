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
