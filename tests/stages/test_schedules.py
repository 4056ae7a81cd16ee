"""Learning rates over a stage: a step of the schedule for each of the optimizer, and the same after a resume."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import small_stages as small
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from callbacks import StageCheckpoint
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.schedules import WarmUp
from uae_lightning.usage import UsageError

make_stage = small.make_stage


def factors(taken: int, **options) -> list[float]:
    """What the rate is multiplied by in each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=2.0)
    schedule, found = WarmUp(optimizer, **options), []
    for _ in range(taken):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_and_what_follows():
    # red if the first step has a rate of 0, the line is one step off, or the floor is not the end
    assert factors(6, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors(3) == [1.0, 1.0, 1.0]
    linear = factors(8, warmup=2, steps=6, shape="linear", floor=0.2)
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    cosine = factors(5, steps=4, shape="cosine")
    assert cosine == pytest.approx([1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0])
    for options in ({"shape": "cosine"}, {"shape": "linear", "warmup": 5, "steps": 5}):
        with pytest.raises(ValueError, match="schedule needs `steps`, more than warmup"):
            factors(1, **options)


class Rates(L.Callback):
    """The learning rate of each optimiser step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def fit(stage, folder: Path, steps: int, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    rates, last = Rates(), folder / "last.ckpt"
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, accelerator="cpu", plugins=[AtomicCheckpointIO()],
        callbacks=[rates, StageCheckpoint(folder, "last", every_n_train_steps=1)], **options,
    )  # fmt: skip
    data = ScenesData(batch_size=2)
    trainer.fit(stage, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    return rates.seen, {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("kind", "stage_options", "trainer_options"),
    [
        (DecoderRL, {"updates_per_batch": 2}, {}),  # by hand: two optimiser steps in a batch
        (DecoderPretrain, {}, {"accumulate_grad_batches": 2}),  # by Lightning: one in two batches
    ],
)
def test_the_schedule_steps_with_the_optimizer_and_resumes(make_stage, tmp_path, kind, stage_options, trainer_options):
    # red if it steps with the batches, or its place is left out of a checkpoint
    def schedule(optimizer):
        return WarmUp(optimizer, warmup=2, steps=6, shape="linear")

    torch.manual_seed(0)
    stage = make_stage(kind, lr_scheduler=schedule, **stage_options)
    start = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    rates, expected = fit(stage, tmp_path / "straight", 6, **trainer_options)
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])
    stage.load_state_dict(start)
    before, _ = fit(stage, tmp_path / "stopped", 2, **trainer_options)
    after, found = fit(stage, tmp_path / "stopped", 6, **trainer_options)
    assert [*before, *after] == rates
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_each_component_keeps_its_own_rate_under_a_schedule(make_stage):
    # red if the schedule sets one rate for all groups
    stage = make_stage(DecoderPretrain, learning_rates={"projector": 0.5}, lr_scheduler=lambda o: WarmUp(o, warmup=10))
    rates = [group["lr"] for group in stage.configure_optimizers()["optimizer"].param_groups]
    assert rates == pytest.approx([0.05, 1e-3])


def test_schedules_of_torch_fit_those_that_follow_a_figure_do_not(make_stage):
    # red if ReduceLROnPlateau is stepped without a figure, in the middle of a run
    assert make_stage(DecoderRL, lr_scheduler=lambda o: CosineAnnealingLR(o, 10)).configure_optimizers()["optimizer"]
    with pytest.raises(ValueError, match="lr_scheduler: ReduceLROnPlateau follows a figure"):
        make_stage(DecoderRL, lr_scheduler=ReduceLROnPlateau).configure_optimizers()


def test_a_schedule_is_named_in_yaml_or_by_options():
    # red if Stage does not take it from LightningCLI, or a number of it has no range
    stage = [
        "fit",
        "--config=conf/scenes/decoder_rl.yaml",
        "--model.init_args.lr_scheduler=uae_lightning.stages.schedules.WarmUp",
    ]
    option = "--model.init_args.lr_scheduler.init_args"
    found = parse_stage([*stage, f"{option}.warmup=3", f"{option}.steps=9", f"{option}.shape=linear"]).config.fit
    schedule = found.model.init_args.lr_scheduler
    assert schedule.class_path.endswith("schedules.WarmUp") and schedule.init_args.warmup == 3
    with pytest.raises(UsageError, match="warmup.*must be a whole number"):
        parse_stage([*stage, f"{option}.warmup=-1"])
