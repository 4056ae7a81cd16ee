import json
import time
from types import SimpleNamespace

import pytest
import torch
from standins import TinyStage, fit

from callbacks import Throughput, throughput


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Module:
    """What Throughput asks of a stage."""

    def __init__(self):
        self.timings, self.logged = {}, {}

    def log_dict(self, values):
        self.logged = values


def test_rates_over_the_window_without_validation(monkeypatch):
    # Red if maxlen=window becomes None, the world size is left out, or on_validation_end does not reset the clock.
    clock, module, trainer = Clock(), Module(), SimpleNamespace(world_size=2)
    monkeypatch.setattr(throughput, "time", clock)
    callback, batch = Throughput(window=2), SimpleNamespace(images=torch.zeros(4, 3, 2, 2))
    callback.on_train_start(trainer, module)
    for seconds in (100.0, 1.0, 3.0):  # the first leaves the window
        callback.on_validation_start(trainer, module)
        clock.now += 1000.0
        module.timings = {**module.timings, "score": module.timings.get("score", 0.0) + 5.0}
        callback.on_validation_end(trainer, module)
        clock.now += seconds
        module.timings = {"score": module.timings["score"] + seconds / 4, "update": 0.0}
        callback.on_train_batch_end(trainer, module, None, batch, 0)
    assert module.logged == {
        "throughput/images_per_second": 16 / 4.0,
        "throughput/seconds_per_step": 2.0,
        "throughput/images_seen": 24.0,
        "time/score": pytest.approx(0.25),
        "time/update": 0.0,
    }
    assert callback.spent == {"validation": 3000.0, "steps": 104.0, "score": 26.0, "update": 0.0}


def test_in_a_run_images_and_seconds_are_counted_over_a_resume(tmp_path):
    # Red if "images_seen" or "spent" is not restored.
    first, callback = Throughput(), Throughput()
    first.spent["steps"] = 1000.0  # as if it had been slow
    fit(tmp_path, first, steps=2)
    stage = TinyStage()
    stage.timings = {"score": 7.0}
    began = time.perf_counter()
    _, trainer = fit(tmp_path, callback, steps=5, stage=stage, resume=tmp_path / "checkpoints/step=2.ckpt")
    assert callback.images_seen == 20 and trainer.callback_metrics["time/score"] == 0
    assert 0 < trainer.callback_metrics["throughput/seconds_per_step"] < time.perf_counter() - began
    spent = json.loads((tmp_path / "time.json").read_text())
    assert spent["steps"] >= 1000 and 0 < spent["validation"] + 0.1 < 100
