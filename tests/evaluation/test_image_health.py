import numpy as np
import pytest
import torch

from uae_lightning.evaluation.image_health import (
    STATISTICS,
    ImageHealth,
    color_entropy,
    compared,
    edge_density,
    image_health,
)
from uae_lightning.evaluation.intervals import interval as interval_of
from uae_lightning.evaluation.intervals import ratio
from uae_lightning.scenes.scene import IMAGE_SIZE, pictures, sample_scene


@pytest.fixture(scope="module")
def scenes():
    return pictures([sample_scene("validation", 0, i) for i in range(32)])


def moved(originals, reconstructions) -> dict[str, int]:
    """+1 or -1 where the whole interval of a ratio lies above or below 1, 0 where it is 1 and nothing else."""
    summary = ImageHealth().figures(image_health(originals, reconstructions))
    signs = {}
    for name, x in summary.items():
        alike = x["low"] == pytest.approx(1, abs=1e-5) == x["high"]
        signs[name] = 0 if alike else 1 if x["low"] > 1 else -1 if x["high"] < 1 else None
    return signs


def shuffled(images):
    order = torch.randperm(IMAGE_SIZE**2, generator=torch.Generator().manual_seed(0))
    return images.flatten(2)[..., order].unflatten(2, (IMAGE_SIZE, IMAGE_SIZE))


FAULTS = {  # how a picture changes: saturation, high_frequency, edge_density, color_entropy
    "nothing": (lambda x: x, (0, 0, 0, 0)),
    "mirror": (lambda x: x.flip(3), (0, 0, None, 0)),  # the last row and column have no next pixel
    "other channels": (lambda x: x[:, [1, 2, 0]], (0, 0, 0, 0)),
    "pixels elsewhere": (shuffled, (0, 1, 1, 0)),
    "desaturate": (lambda x: x.mean(1, keepdim=True).expand_as(x), (-1, -1, 0, -1)),
    "oversaturate": (lambda x: x + 0.3 * (x - x.mean(1, keepdim=True)), (1, 1, 0, None)),
    "noise": (lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), (1, 1, 1, 1)),
    "blur": (lambda x: torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False), (-1, -1, -1, None)),
    "flat colors": (lambda x: (x * 4).floor() / 4, (None, 1, 1, -1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_moves_its_figures_and_no_other(fault, scenes):
    # Red if originals and reconstructions change places, or .mean(1) in edge_density becomes [:, 0].
    plant, expected = FAULTS[fault]
    signs = moved(scenes, plant(scenes))
    assert all(sign == wanted for sign, wanted in zip(signs.values(), expected, strict=True) if wanted is not None), (
        signs
    )


def test_statistics_of_known_pictures():
    # Red if > EDGE becomes < EDGE, or SHADES**3 colors share a place in the histogram.
    flat = torch.full((1, 3, 8, 8), 0.4)
    assert [of(flat).item() for of in STATISTICS.values()] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    halves = flat.clone()
    halves[:, :2, :, 4:] = 0.9  # gray beside yellow
    assert color_entropy(halves).item() == pytest.approx(1)
    assert edge_density(halves).item() == pytest.approx(1 / 7)
    quarters = halves.clone()
    quarters[:, 2, 4:] = 0.9  # and blue and white below them
    assert color_entropy(quarters).item() == pytest.approx(2)
    assert STATISTICS["saturation"](halves).item() == pytest.approx(0.25)


def test_compared_is_the_ratio_of_the_summary(scenes):
    # Red if `compared` averages ratios of pictures instead of dividing averages.
    noisy = (scenes + 0.05 * torch.randn(scenes.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    summary = ImageHealth().figures(image_health(scenes, noisy))
    ratios = compared(scenes, noisy)
    assert ratios.keys() == summary.keys()
    assert [x["mean"] for x in summary.values()] == pytest.approx([x.item() for x in ratios.values()], rel=1e-5)
    assert all(x["n"] == 32 and x["low"] <= x["mean"] <= x["high"] for x in summary.values())


def test_the_interval_of_a_ratio_covers_it_and_is_paired():
    # Red if (1 - level) / 2 becomes 1 - level, or a and b are resampled apart.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        b = rng.gamma(2.0, size=40)
        interval = interval_of([b * rng.normal(1.5, 0.3, size=40), b], ratio, resamples=500)
        hits += interval["low"] <= 1.5 <= interval["high"]
    assert 0.89 <= hits / 300 <= 0.98
    twice = interval_of([2 * b, b], ratio)
    assert twice["low"] == pytest.approx(2) == twice["high"]


def test_a_rare_denominator_is_no_nan():
    # Red if nanquantile becomes quantile: many resamples have no denominator at all.
    interval = interval_of([[0.5] + [0.0] * 9, [1.0] + [0.0] * 9], ratio)
    assert interval == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 10}


@pytest.mark.parametrize(
    "a, b",
    [
        ([1.0], [1.0]),
        ([1.0, 2.0], [1.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, float("nan")], [1.0, 1.0]),
    ],
)
def test_what_has_no_ratio_is_refused(a, b):
    # Red if any of the checks goes.
    with pytest.raises(ValueError, match="at least 2|not finite|does not exist"):
        interval_of([a, b], ratio)
