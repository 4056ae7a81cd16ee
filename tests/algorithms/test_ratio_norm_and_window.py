import pytest
import torch

from uae_lightning.algorithms.flow_sde import drawn_window, normalized_log_ratio, sde_step, sliding_window


def step_of(velocity, sigma, sigma_next, kind, prev=None):
    x = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return sde_step(x, velocity, sigma, sigma_next, 0.5, prev=prev, generator=generator, kind=kind)


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps"])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.9), (0.6, 0.3)])
def test_ratio_norm_is_the_product_of_noise_and_drift(kind, sigma, sigma_next):
    # Red if `2 *` goes, `log_ratio * std` becomes `log_ratio`, or + becomes -. GRPO-Guard, arXiv 2510.22319:
    # (log r + |dmu|^2 / (2 std^2)) std = <e, dmu>, with the noise e that was drawn; means over latents, as log r is
    generator = torch.Generator().manual_seed(2)
    old_velocity = torch.randn(3, 4, 2, 2, generator=generator)
    velocity = old_velocity + 0.1 * torch.randn(3, 4, 2, 2, generator=generator)
    old = step_of(old_velocity, sigma, sigma_next, kind)
    new = step_of(velocity, sigma, sigma_next, kind, prev=old.prev)
    noise = (old.prev - old.mean) / old.std
    found = normalized_log_ratio(new.mean_log_prob - old.mean_log_prob, new.mean, old.mean, new.std)
    torch.testing.assert_close(found, (noise * (new.mean - old.mean)).mean((1, 2, 3)), atol=1e-6, rtol=1e-4)


def test_ratio_norm_has_no_bias_at_any_step():
    # Red if the drift is left out: plain ratios are below 1 on average, by |dmu|^2 / (2 std^2), normalized ones are not
    old_velocity = torch.zeros(4000, 1, 4, 4)
    for sigma, sigma_next in ((0.9, 0.6), (0.3, 0.05)):
        old = step_of(old_velocity, sigma, sigma_next, "cps")
        new = step_of(old_velocity + 1, sigma, sigma_next, "cps", prev=old.prev)
        log_ratio = new.mean_log_prob - old.mean_log_prob
        normalized = normalized_log_ratio(log_ratio, new.mean, old.mean, new.std)
        error = 4 * normalized.std() / len(normalized) ** 0.5
        assert normalized.mean().abs() < error < log_ratio.mean().abs() * new.std.item()


def test_ratio_norm_of_a_step_without_noise_is_zero():
    # Red if the masked_fill goes: 0 / 0
    mean = torch.ones(2, 1, 2, 2)
    found = normalized_log_ratio(torch.zeros(2), mean + 1, mean, torch.zeros(1, 1, 1, 1))
    assert found.tolist() == [0.0, 0.0]


def test_the_window_slides_to_the_last_step_but_one_and_stays():
    # Red if // becomes %, or steps - 1 becomes steps
    places = [sliding_window((0, 2), batches, every=3, steps=5) for batches in range(9)]
    assert places == [(0, 2)] * 3 + [(1, 3)] * 3 + [(2, 4)] * 3
    assert sliding_window((0, 2), 1000, every=3, steps=5) == (2, 4)
    assert sliding_window((3, 5), 1000, every=3, steps=5) == (3, 5)  # a window that starts later is left there


def test_a_window_that_rolls_back_begins_again_where_it_began():
    # Red if % becomes //, or the places are one too many or too few
    places = [sliding_window((1, 3), batches, every=2, steps=6, roll_back=True) for batches in range(10)]
    assert places == [(1, 3)] * 2 + [(2, 4)] * 2 + [(3, 5)] * 2 + [(1, 3)] * 2 + [(2, 4)] * 2
    assert sliding_window((3, 5), 7, every=1, steps=5, roll_back=True) == (3, 5)  # one place is all there is


def test_windows_are_drawn_from_all_places_and_by_their_seed():
    # Red if `- width` goes, or randint becomes randrange: the last place is as likely as the others
    windows = [drawn_window((1, 5), 3, seed) for seed in range(600)]
    assert windows == [drawn_window((1, 5), 3, seed) for seed in range(600)]
    counts = [windows.count(place) for place in ((1, 4), (2, 5))]
    assert sum(counts) == 600 and min(counts) > 250
