import time

from lightning.pytorch.loggers import TensorBoardLogger
from standins import Closeness, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import CurvesOnce, RewardCallback, SampleGallery, StageClock


def test_seconds_go_on_and_no_change_of_the_date_moves_them(tmp_path, monkeypatch):
    # Red with time.time for time.monotonic, or without load_state_dict.
    monkeypatch.setattr(time, "time", lambda: 867_388.0)
    fit(tmp_path, StageClock(time.monotonic() - 100), steps=2)
    clock = StageClock(time.monotonic() - 10)
    fit(tmp_path, clock, steps=3, resume=tmp_path / "checkpoints/step=2.ckpt")
    assert 110 < clock.seconds() < 150


def test_curves_show_every_step_once_after_a_resume(tmp_path):
    # Red without the event in on_train_batch_start, with step + 1 there, or without the flush.
    def train(folder, **options):
        logger = TensorBoardLogger(folder, name="", version="")
        fit(folder, RewardCallback(Closeness()), SampleGallery(1), CurvesOnce(), logger=logger, **options)

    train(tmp_path / "straight", steps=6)
    train(tmp_path / "killed", steps=6)  # its steps 4 to 6 are gone with the checkpoints behind 3
    train(tmp_path / "killed", steps=6, resume=tmp_path / "killed/checkpoints/step=3.ckpt")
    straight, killed = (events(tmp_path / name) for name in ("straight", "killed"))
    assert straight == killed and [step for step, _ in straight["train/reward"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in straight["val/reward"]] == [0, 1, 3, 5]


def events(folder):
    read = EventAccumulator(str(folder))
    read.Reload()
    found = {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}
    return found | {name: [(event.step, None) for event in read.Images(name)] for name in read.Tags()["images"]}
