import pytest
import torch
from torch import nn

from uae_lightning.scenes.bootstrap.loop import learning_rate, train


def fit(work, steps: int, stop: int | None = None, muon: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(step: int):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return {"error": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    matrices = [model.weight] if muon else []
    train(model, loss, steps=steps, lr=0.1, work=work, matrices=matrices, save_every=2, report_every=100)
    return model


@pytest.mark.parametrize("muon", [False, True])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, muon: bool):
    # red if the average or an optimiser is left out of the checkpoint
    straight = fit(tmp_path / "a", 9, muon=muon)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", 9, stop=5, muon=muon)
    assert torch.equal(fit(tmp_path / "b", 9, muon=muon).weight, straight.weight)


def test_matrices_are_left_to_muon_and_the_rest_to_adam(tmp_path):
    # red if `== wanted` becomes `!= wanted`
    fit(tmp_path, 3, muon=True)
    adam, muon = torch.load(tmp_path / "state.pt", weights_only=True)["optimizers"]
    assert adam["state"][0]["exp_avg"].shape == (1,) and muon["state"][0]["momentum_buffer"].shape == (1, 3)


def test_it_learns(tmp_path):
    model = fit(tmp_path, 600)
    torch.testing.assert_close(model.weight, torch.ones(1, 3), atol=0.05, rtol=0)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        train(model, lambda step: {"error": model.weight.sum() * torch.nan}, steps=1, lr=0.1, work=tmp_path)


def test_learning_rate_warms_up_stays_and_decays():
    # red if the decay starts at `decay_share` instead of one minus it
    rates = [learning_rate(step, 1000, 1.0) for step in (0, 99, 400, 825, 1000)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.5, 0.0])
