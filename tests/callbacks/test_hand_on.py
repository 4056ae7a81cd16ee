"""Which weights a stage hands on: the last, or those of the best validation."""

from __future__ import annotations

import json

import pytest
import torch
from standins import Closeness, TinyStage, fit, rows

from callbacks import EMA, ComponentWeights, RewardCallback
from uae_lightning.report.summary import stage_record
from uae_lightning.run import folder as run_folder
from uae_lightning.types import RewardOutput


class Worsening(Closeness):
    """Best in the validation of that number, of two batches each; the training's own calls do not count."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.best, self.calls = best, 0

    def held_out(self) -> Closeness:
        return HeldOut(self)


class HeldOut(Closeness):
    def __init__(self, owner: Worsening) -> None:
        super().__init__()
        self.owner = [owner]

    def forward(self, inputs):
        owner = self.owner[0]
        output, number = super().forward(inputs), owner.calls // 2
        owner.calls += 1
        return RewardOutput(output.total * 0 - abs(number - owner.best), output.parts)


class Watch(EMA):
    """The weights at each validation, as they were validated."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.validated: list[torch.Tensor] = []

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.validated.append(pl_module.projector.mix.weight.detach().clone())


def handed_on(folder):
    return torch.load(folder / "weights/projector/model.pt", weights_only=True)["mix.weight"]


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_weights_of_the_best_validation_are_handed_on(tmp_path, best):
    # red if the raw weights are kept where the average was validated, or step 0 does not count
    watch = Watch(0.5)
    fit(tmp_path, watch, RewardCallback(Worsening(best), Closeness()), ComponentWeights("best"), steps=4)
    assert torch.equal(handed_on(tmp_path), watch.validated[best])
    assert json.loads((tmp_path / "handed_on.json").read_text()) == {"reward": 0.0, "step": 2 * best}
    assert run_folder.final_row(tmp_path) == rows(tmp_path)[best]
    record = stage_record("x", tmp_path, 4, 1.0, "uae fit")
    assert record["step"] == 2 * best and record["reward_after"]["mean"] == 0.0


def test_the_last_are_handed_on_where_nothing_is_said(tmp_path):
    # red with "best" as the default: figures of earlier versions would be others
    watch = Watch(0.5)
    fit(tmp_path, watch, RewardCallback(Worsening(1), Closeness()), ComponentWeights(), steps=4)
    assert torch.equal(handed_on(tmp_path), watch.validated[2]) and not (tmp_path / "handed_on.json").exists()
    assert run_folder.final_row(tmp_path) == rows(tmp_path)[2]


def test_the_best_survives_a_kill(tmp_path):
    # red if it is left out of the callback's state: the best of what came after the resume would be handed on
    watch = Watch(0.5)
    fit(tmp_path / "a", watch, RewardCallback(Worsening(1), Closeness()), ComponentWeights("best"), steps=6)
    again = Worsening(1)
    again.calls = 4  # as many as were before the checkpoint
    fit(
        tmp_path / "a", EMA(0.5), RewardCallback(again, Closeness()), ComponentWeights("best"), steps=6,
        resume=tmp_path / "a/checkpoints/step=3.ckpt",
    )  # fmt: skip
    assert torch.equal(handed_on(tmp_path / "a"), watch.validated[1])


def test_the_best_by_no_reward_is_refused(tmp_path):
    # red if nobody looks for a RewardCallback before the first step
    for callbacks in ([ComponentWeights("best")], [ComponentWeights("best"), RewardCallback(Closeness())]):
        with pytest.raises(ValueError, match="hand_on: best .* list callbacks.RewardCallback before it"):
            fit(tmp_path, *callbacks, steps=1, stage=TinyStage())
