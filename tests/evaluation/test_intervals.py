import numpy as np
import pytest

from uae_lightning.evaluation.intervals import grouped_interval, mean_interval

DRAWS = 300
SAMPLES = {  # true mean, and a sample as evaluations see them
    "skewed": (2.0, lambda rng: rng.gamma(2.0, size=48)),
    "right or wrong": (0.8, lambda rng: rng.random(96) < 0.8),
    "paired gains": (0.1, lambda rng: (rng.random(96) < 0.7) * 1.0 - (rng.random(96) < 0.6)),
}


def coverage(intervals, truth):
    return np.mean([found["low"] <= truth <= found["high"] for found in intervals])


@pytest.mark.parametrize("kind", SAMPLES)
def test_interval_covers_the_true_mean_about_as_often_as_it_says(kind):
    # red with `(1 - level)` in place of `(1 - level) / 2`, and with `.std(1)` in place of `.mean(1)`
    truth, sample = SAMPLES[kind]
    rng = np.random.default_rng(1)
    assert 0.90 <= coverage([mean_interval(sample(rng), resamples=400) for _ in range(DRAWS)], truth) <= 0.99


GROUPS = (0.9, 0.4, 0.7)  # true means of unequal tasks
SIZES = (10, 40, 24)  # and their items


def test_grouped_interval_of_one_seed_covers_the_mean_of_the_groups():
    # red with `(1 + level)` in place of `(1 + level) / 2`, or with the items of all groups pooled
    rng = np.random.default_rng(2)
    draws = [[[rng.random(n) < p] for p, n in zip(GROUPS, SIZES, strict=True)] for _ in range(DRAWS)]
    found = [grouped_interval(draw, resamples=400) for draw in draws]
    assert 0.90 <= coverage(found, np.mean(GROUPS)) <= 0.99
    assert found[0]["n"] == sum(SIZES) and found[0]["seeds"] == 1


@pytest.mark.parametrize(("of_seed", "of_item"), [(0.3, 0.1), (0.05, 1.0)], ids=["seeds differ", "items differ"])
def test_grouped_interval_of_several_seeds_covers_the_mean_over_seeds_and_items(of_seed, of_item):
    # red with `weights` drawn anew for each group, or set to 1 / seeds: seeds then seem to agree
    rng = np.random.default_rng(3)
    found = [grouped_interval(measured(rng, of_seed, of_item), resamples=300) for _ in range(DRAWS // 2)]
    assert 0.90 <= coverage(found, np.mean(GROUPS)) <= 0.99


def measured(rng, of_seed, of_item, seeds=20):
    """[groups][seeds][items]: a seed is good or bad at all groups, an item easy or hard for all seeds, and noise."""
    seed_effects = of_seed * rng.normal(size=(seeds, 1))
    return [
        mean + seed_effects + of_item * rng.normal(size=(1, n)) + 0.2 * rng.normal(size=(seeds, n))
        for mean, n in zip(GROUPS, SIZES, strict=True)
    ]


def test_mean_of_group_means_not_of_items():
    # red with the mean over all items in place of the mean of the groups' means
    found = grouped_interval([[[0.0, 0.0]], [[1.0] * 6]])
    assert found["mean"] == 0.5 and found["n"] == 8


@pytest.mark.parametrize("groups", [[], [[[1.0]]], [[[0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], [[[0.0, float("nan")]]]])
def test_groups_that_have_no_interval_are_refused(groups):
    # red with `< 1` in place of `< 2`, or without the look at `len(arrays[0])`
    with pytest.raises(ValueError, match="at least 2|not finite"):
        grouped_interval(groups)


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
