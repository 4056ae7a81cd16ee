import warnings

import pytest
from standins import TinyStage, fit

from callbacks import PolicyHealth


class Policy(TinyStage):
    def __init__(self, **health):
        super().__init__()
        self.health = health


def test_health_is_logged_and_a_stage_without_it_is_left_alone(tmp_path):
    # Red if the prefix policy/ changes, or `if not health` goes.
    _, trainer = fit(tmp_path, PolicyHealth(), steps=1, stage=Policy(ratio_mean=1.0, first_log_ratio=5e-5))
    assert trainer.callback_metrics["policy/ratio_mean"] == 1.0
    _, trainer = fit(tmp_path, PolicyHealth(), steps=1)
    assert not any(name.startswith("policy/") for name in trainer.callback_metrics)


@pytest.mark.parametrize("drift", [2e-4, float("nan")])
def test_drift_between_sampling_and_replay_stops_the_run(tmp_path, drift):
    # Red if `not drift <= limit` becomes `drift > limit` (NaN), or <= becomes >=.
    with pytest.raises(FloatingPointError, match="drifted apart.*dtype.*dropout.*eval mode.*8-bit"):
        fit(tmp_path, PolicyHealth(), steps=1, stage=Policy(first_log_ratio=drift))
    fit(tmp_path, PolicyHealth(max_log_ratio=1.0), steps=1, stage=Policy(first_log_ratio=2e-4))


def test_groups_that_teach_nothing_are_warned_of_once(tmp_path):
    # Red if == STEPS becomes > STEPS, or `not self.warned` goes.
    def seen(share, steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            callback = PolicyHealth()
            fit(tmp_path, callback, steps=steps, stage=Policy(zero_variance_share=share), num_sanity_val_steps=0)
            callback.flat_steps = 0
            fit(tmp_path, callback, steps=steps, stage=Policy(zero_variance_share=share), num_sanity_val_steps=0)
        return sum("equal rewards" in str(warning.message) for warning in caught)

    assert (seen(0.9, 20), seen(0.9, 19), seen(0.8, 20)) == (1, 0, 0)


@pytest.mark.parametrize("apart", [0.6, float("nan")])
def test_an_engine_of_other_weights_stops_the_run(tmp_path, apart):
    # Red if the mean is not looked at, or NaN passes.
    with pytest.raises(FloatingPointError, match="another policy .*max_sampler_log_ratio=0.5.*encoder.path"):
        fit(tmp_path, PolicyHealth(), steps=1, stage=Policy(sampler_log_ratio_mean=apart))
    fit(tmp_path, PolicyHealth(), steps=1, stage=Policy(sampler_log_ratio_mean=0.4))
