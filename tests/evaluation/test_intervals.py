import numpy as np
import pytest

from uae_lightning.evaluation.intervals import mean_interval


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    # red with `(1 - level)` in place of `(1 - level) / 2`, and with `.std(1)` in place of `.mean(1)`
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        found = mean_interval(rng.gamma(2.0, size=48), resamples=400)
        covered += found["low"] <= 2.0 <= found["high"]
    assert 0.90 <= covered / 300 <= 0.98


def test_width_is_that_of_the_normal_approximation():
    # red with `level=0.9` as the default
    x = np.random.default_rng(0).normal(size=2000)
    found = mean_interval(x)
    assert found["n"] == 2000 and found["mean"] == pytest.approx(x.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * x.std() / 2000**0.5, rel=0.08)


def test_same_values_same_interval():
    # red with `default_rng()` in place of `default_rng(seed)`
    x = np.random.default_rng(0).normal(size=40)
    assert mean_interval(x) == mean_interval(x)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_values_that_have_no_interval_are_refused(values):
    # red with `< 1` in place of `< 2`
    with pytest.raises(ValueError, match="at least 2|not finite"):
        mean_interval(values)
