from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from standins import TinyStage, fit

from callbacks import EMA


class Recorder(Callback):
    """The weights in the module at every hook that matters."""

    def __init__(self):
        self.raw, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.raw.append(weights(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.validated.append(weights(pl_module))


def weights(stage):
    return stage.projector.mix.weight.detach().clone()


def expected_average(start, raw, decay, every=1):
    average = start.clone()
    for t, weight in list(enumerate(raw))[every - 1 :: every]:
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * weight
    return average


def test_the_average_against_a_loop_of_its_own(tmp_path):
    # Red if 9 + becomes 10 +, 1 - decay becomes decay, < self.every becomes <=, or updates are counted, not steps.
    for every in (1, 2):
        recorder, ema = Recorder(), EMA(decay=0.35, every=every)
        stage, _ = fit(tmp_path / str(every), ema, recorder, steps=6)
        average = expected_average(weights(TinyStage()), recorder.raw, 0.35, every)
        torch.testing.assert_close(ema.average["projector.mix.weight"], average)
        torch.testing.assert_close(weights(stage), average)
        assert not torch.equal(average, recorder.raw[-1])


def test_the_warm_up_counts_optimiser_steps():
    # Red if it counts updates of the average: after 200 steps the decay would be .735, the lag 20. A weight that grows
    # by 1 a step; the right values are those of a loop in the form of Flow-GRPO's code.
    model, trainer, ema = torch.nn.Linear(1, 1, bias=False), SimpleNamespace(global_step=0), EMA(0.9, every=8)
    model.weight.data.fill_(right := 0.0)
    ema.on_train_start(trainer, model)
    for step in range(200):
        model.weight.data += 1
        if (step + 1) % 8 == 0:
            decay = min(0.9, (1 + step) / (10 + step))
            right = decay * right + (1 - decay) * (step + 1)
        trainer.global_step += 1
        ema.on_train_batch_end(trainer, model, None, None, step)
    assert ema.average["weight"].item() == pytest.approx(right, abs=1e-3)
    assert 200 - right == pytest.approx(64.9, abs=0.1)


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(tmp_path):
    # Red if on_validation_end does not copy back, or `if not self.last_step` becomes `if self.last_step`.
    recorder = Recorder()
    fit(tmp_path / "a", EMA(decay=0.9), recorder, steps=4)
    plain = Recorder()
    fit(tmp_path / "b", plain, steps=4)
    start = weights(TinyStage())
    assert torch.equal(recorder.validated[0], start)  # step 0
    for validated, steps in zip(recorder.validated[1:], (2, 4), strict=True):
        torch.testing.assert_close(validated, expected_average(start, recorder.raw[:steps], 0.9))
    assert all(torch.equal(a, b) for a, b in zip(recorder.raw, plain.raw, strict=True))


def test_only_trainable_parameters_are_copied(tmp_path):
    # Red if `if p.requires_grad` goes.
    ema = EMA()
    fit(tmp_path, ema, steps=1)
    assert ema.average.keys() == {"projector.mix.weight", "projector.mix.bias"}
    assert all(average.dtype == torch.float32 for average in ema.average.values())


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, step):
    # Red if "last_step" or "average" goes from the state. Step 5 is the end: nothing is left to train.
    whole, _ = fit(tmp_path / "whole", EMA(0.9, every=2), steps=5)
    fit(tmp_path / "killed", EMA(0.9, every=2), steps=step)
    ema = EMA(0.9, every=2)
    resumed, _ = fit(tmp_path / "resumed", ema, steps=5, resume=tmp_path / f"killed/checkpoints/step={step}.ckpt")
    assert ema.last_step == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class SaveInValidation(Callback):
    """The worst moment: the average is in the module. `on_validation_end` is ModelCheckpoint's."""

    def __init__(self, hook, path):
        self.path = path
        setattr(self, hook, self.save)

    def save(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_validation_end", "on_fit_end"])
def test_a_checkpoint_always_holds_the_raw_weights(tmp_path, hook):
    # Red if on_save_checkpoint does not update state_dict.
    recorder = Recorder()
    saver = SaveInValidation(hook, tmp_path / "odd.ckpt")
    fit(tmp_path, EMA(0.9), recorder, saver, steps=2)
    saved = torch.load(tmp_path / "odd.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["projector.mix.weight"], recorder.raw[-1])


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    # Red if != trained.keys() becomes ==.
    fit(tmp_path, EMA(), steps=2)
    other = TinyStage()
    other.projector.mix.bias.requires_grad_(False)
    other.configure_optimizers = lambda: torch.optim.Adam(other.projector.mix.parameters())
    with pytest.raises(ValueError, match="1 are no longer trained"):
        fit(tmp_path, EMA(), steps=3, stage=other, resume=tmp_path / "checkpoints/step=1.ckpt")


def test_bad_options():
    # Red if < 1 becomes <= 1 in the check of decay.
    for options in ({"decay": 1.0}, {"decay": -0.1}, {"every": 0}):
        with pytest.raises(ValueError, match="must be a"):
            EMA(**options)
