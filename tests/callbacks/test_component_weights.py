import pytest
import torch
from standins import Tint, TinyStage, fit

from callbacks import EMA, ComponentWeights


def test_the_trained_parts_are_saved_averaged_and_nothing_else(tmp_path):
    # Red if `pl_module.trained` becomes all components, or EMA stays out at on_fit_end.
    ema = EMA(0.9)
    stage, _ = fit(tmp_path, ema, ComponentWeights(), steps=3)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["projector"]
    saved = torch.load(tmp_path / "weights/projector/model.pt", weights_only=True)
    assert torch.equal(saved["mix.weight"], ema.average["projector.mix.weight"])
    Tint().load_state_dict(saved)  # a new part starts from them


def test_half_written_weights_are_never_picked_up(tmp_path):
    # Red if `weights.partial` becomes `weights`.
    class Killed(BaseException):
        pass

    stage = TinyStage()
    stage.trained = ("projector", "dies")
    stage.dies = Tint()
    stage.dies.save = lambda folder: (_ for _ in ()).throw(Killed())
    with pytest.raises(Killed):
        fit(tmp_path, ComponentWeights(), steps=1, stage=stage)
    assert (tmp_path / "weights.partial/projector").exists() and not (tmp_path / "weights").exists()
    fit(tmp_path, ComponentWeights(), steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "weights"]


def test_a_run_killed_after_its_last_step_saves_them_when_resumed(tmp_path):
    # Red if on_fit_end becomes on_train_end: Lightning skips that where no step is left.
    fit(tmp_path / "a", EMA(0.9), ComponentWeights(), steps=2)
    fit(tmp_path / "b", EMA(0.9), ComponentWeights(), steps=2, resume=tmp_path / "a/checkpoints/step=2.ckpt")
    first, second = (torch.load(tmp_path / run / "weights/projector/model.pt", weights_only=True) for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_run_replaces_them(tmp_path):
    # Red if folder.rename(previous) goes.
    for steps in (1, 2):
        stage, _ = fit(tmp_path, ComponentWeights(), steps=steps)
    saved = torch.load(tmp_path / "weights/projector/model.pt", weights_only=True)
    assert torch.equal(saved["mix.weight"], stage.projector.mix.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "weights"]


def test_ema_must_come_first(tmp_path):
    # Red if any( becomes all(.
    with pytest.raises(ValueError, match="list callbacks.EMA before"):
        fit(tmp_path, ComponentWeights(), EMA(), steps=1)
