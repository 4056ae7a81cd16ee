"""When a checkpoint is written, and that none of the steps before an error is lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from standins import Closeness, TinyStage, fit, rows

from callbacks import EMA, RewardCallback, StageCheckpoint
from uae_lightning.types import RewardOutput


class SeveralUpdates(TinyStage):
    """Three optimiser steps in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(3):
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().zero_grad()


def saver(folder: Path, every: int = 4, **options) -> StageCheckpoint:
    options = {"filename": "{step}", "save_top_k": -1} | options
    return StageCheckpoint(folder / "asked", every_n_train_steps=every, **options)


@pytest.mark.parametrize("every_batches", [100, 1, 2])  # validation never, or at the same end of a batch
def test_a_checkpoint_lies_at_the_first_end_of_a_batch_from_the_asked_step_on(tmp_path, every_batches):
    # red if `global_step // every > before // every` becomes `global_step % every == 0`: first at 12; or without
    # `is_over`: a stage that cannot save its weights at step 15 would have lost what came after 12
    fit(tmp_path, saver(tmp_path), steps=15, stage=SeveralUpdates(), val_check_interval=every_batches)
    assert sorted(int(path.stem.removeprefix("step=")) for path in (tmp_path / "asked").iterdir()) == [6, 9, 12, 15]
    fit(tmp_path / "each", saver(tmp_path / "each", 2), steps=4, val_check_interval=every_batches)
    assert sorted(path.stem for path in (tmp_path / "each" / "asked").iterdir()) == ["step=2", "step=4"]


class FailsOnce(Closeness):
    """NaN, or an error, at the call of that number; 0: never."""

    def __init__(self, at: int, error: Exception | None = None) -> None:
        super().__init__()
        self.left, self.error = at, error

    def forward(self, inputs):
        self.left -= 1
        if self.left == 0 and self.error:
            raise self.error
        output = super().forward(inputs)
        return RewardOutput(output.total * torch.nan, output.parts) if self.left == 0 else output


def run(folder: Path, reward: Closeness, resume: Path | None = None, **options):
    """6 steps of a batch each, with a validation of two batches at steps 0, 2, 4 and 6; saved every 100 steps."""
    logger = CSVLogger(folder, "csv", f"resumed-{resume is not None}")
    stage, trainer = fit(
        folder, EMA(), RewardCallback(reward), saver(folder, 100, filename="last"), steps=6, resume=resume,
        logger=logger, enable_checkpointing=True, **options,
    )  # fmt: skip
    return {name: tensor.clone() for name, tensor in stage.state_dict().items()}, logger.experiment.log_dir


def curve(*folders: str) -> list[tuple[str, str]]:
    lines = [line for folder in folders for line in csv.DictReader(open(Path(folder) / "metrics.csv"))]
    return [(line["step"], line["train/reward"]) for line in lines if line["train/reward"]]


# calls of the reward: 2 of step 0, then by step 3, 4 + (5, 6), 7, 8 + (9, 10), 11, 12 + (13, 14)
@pytest.mark.parametrize(
    ("call", "error", "saved"),
    [
        (7, None, 2),  # in the batch behind a validation
        (8, None, 3),
        (8, KeyError("boom"), 3),  # whatever the error is
        (9, None, 4),  # in the validation of step 4, first batch and second
        (10, None, 4),
    ],
)
def test_the_steps_before_an_error_are_kept_and_resumed_as_if_there_had_been_none(tmp_path, call, error, saved):
    # red if `count.completed` becomes `count.processed`, `- 1` goes from `_batches_that_stepped`, or 0 from
    # back_to_validation: validations, batches or the steps of the curve are then others
    expected, log = run(tmp_path / "straight", FailsOnce(0))
    with pytest.raises((FloatingPointError, KeyError)), pytest.warns(UserWarning, match=f"after step {saved} is saved"):
        run(tmp_path / "failed", FailsOnce(call, error))
    last = tmp_path / "failed" / "asked" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved
    weights, resumed_log = run(tmp_path / "failed", FailsOnce(0), last)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert rows(tmp_path / "failed") == rows(tmp_path / "straight")
    first = str(Path(resumed_log).with_name("resumed-False"))
    assert curve(first, resumed_log) == curve(log)


def test_what_an_error_left_half_done_is_not_saved(tmp_path):
    # red if `trainer.global_step == steps` goes (weights of a half batch), or `self.before is None` (a checkpoint that
    # could not be restored would be written over)
    class Fails(SeveralUpdates):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if batch_idx == 1:
                raise RuntimeError("after the steps of the second batch")

    with pytest.raises(RuntimeError, match="second batch"):
        fit(tmp_path, saver(tmp_path, 100, filename="last"), steps=9, stage=Fails())
    assert not (tmp_path / "asked").exists()

    class Refuses(TinyStage):
        def on_train_start(self):
            raise ValueError("does not fit")

    with pytest.raises(ValueError, match="does not fit"):
        fit(tmp_path, saver(tmp_path, 100), steps=9, stage=Refuses(), resume=tmp_path / "checkpoints/step=3.ckpt")
    assert not (tmp_path / "asked").exists()
