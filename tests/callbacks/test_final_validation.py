import pytest
import torch
from standins import Closeness, TinyStage, fit, rows

from callbacks import EMA, FinalValidation, RewardCallback, StageCheckpoint


@pytest.mark.parametrize(("interval", "steps"), [(2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5])])
def test_the_last_figures_are_of_the_weights_handed_on(tmp_path, interval, steps):
    # Red without FinalValidation in the list, or with < for <= in it.
    stage, _ = fit(
        tmp_path, FinalValidation(), EMA(0.5), RewardCallback(Closeness()), steps=5, val_check_interval=interval
    )
    assert [row["step"] for row in rows(tmp_path)] == steps
    # EMA has put the average in for good: another validation of what is there gives the same
    fit(tmp_path / "again", RewardCallback(Closeness()), steps=1, stage=stage)
    assert rows(tmp_path / "again")[0]["reward"] == rows(tmp_path)[-1]["reward"]


def test_it_is_due_at_the_end_of_the_last_epoch(tmp_path):
    # Red without epochs_done.
    fit(tmp_path, FinalValidation(), RewardCallback(Closeness()), steps=-1, max_epochs=1, limit_train_batches=5)
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4, 5]


def test_the_last_checkpoint_lies_behind_it(tmp_path):
    # Red with StageCheckpoint before it: a resumed run would validate a second time, or never.
    saver = StageCheckpoint(tmp_path / "own", "last", every_n_train_steps=1, enable_version_counter=False)
    fit(tmp_path, FinalValidation(), RewardCallback(Closeness()), saver, steps=5, val_check_interval=9)
    saved = torch.load(tmp_path / "own/last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    stage = TinyStage()
    fit(
        tmp_path,
        FinalValidation(),
        RewardCallback(Closeness()),
        steps=5,
        stage=stage,
        resume=tmp_path / "own/last.ckpt",
    )
    assert [row["step"] for row in rows(tmp_path)] == [0, 5]
