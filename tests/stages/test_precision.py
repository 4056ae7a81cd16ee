"""float16 with a loss scale, fused optimizers, and precisions that cannot train."""

from __future__ import annotations

import contextlib
import math

import lightning as L
import pytest
import small_stages as small
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from uae_lightning.run.stage_cli import parse_stage, run_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.usage import UsageError

make_stage = small.make_stage
STAGES = [DecoderPretrain, EncoderRL, DecoderRL]


class Scaled(MixedPrecision):
    """The loss scale of float16 on numbers of float32, so that nothing else differs."""

    def __init__(self, scale: float = 2.0**16) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self):
        return contextlib.nullcontext()


class Norms(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, stage, *_) -> None:
        self.seen.append(trainer.callback_metrics["train/grad_norm"].item())


def fit(stage, steps: int = 2, callbacks: tuple = (), **options) -> tuple[L.Trainer, list[float]]:
    norms = Norms()
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, accelerator="cpu", callbacks=[norms, *callbacks], **options,
    )  # fmt: skip
    trainer.fit(stage, datamodule=ScenesData(batch_size=2))
    return trainer, norms.seen


def adam(parameters, **options):
    return torch.optim.AdamW(parameters, lr=1e-2, **options)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("fused", [False, True])
def test_the_loss_scale_is_taken_out_before_gradients_are_clipped(make_stage, kind, fused):
    # red if `clip_to_norm` is called before `optimizer.step()`, or `scaler.unscale_` goes (fused): the norm is then
    # that of 65,536 times the gradient, and clipping leaves next to nothing of it
    def trained(**options):
        torch.manual_seed(0)  # of LoRA
        stage = make_stage(kind, optimizer=lambda parameters: adam(parameters, fused=fused), max_grad_norm=1e-4)
        return [p.detach() for p in stage.parameters() if p.requires_grad], fit(stage, **options)[1]

    (expected, norms), (weights, scaled_norms) = trained(), trained(plugins=[Scaled()])
    assert scaled_norms == pytest.approx(norms, rel=1e-3) and min(norms) > 1.5e-4
    for one, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_fused_optimizer_in_mixed_precision(make_stage, kind, precision):
    # red with `configure_gradient_clipping` calling Lightning's `clip_gradients`, which refuses fused optimizers
    stage = make_stage(kind, optimizer=lambda parameters: adam(parameters, fused=True))
    _, norms = fit(stage, 1, plugins=[MixedPrecision(precision, "cpu")])
    assert 0 < norms[0] < 1e3


def fails_in_float16(stage, times: int) -> None:
    """Gradients overflow in the first `times` steps."""
    backward, step = stage.manual_backward, stage.optimizer_step_after_clipping
    factors = [1e38] * times

    def counted() -> float:
        norm = step()
        del factors[:1]
        return norm

    stage.manual_backward = lambda loss: backward(loss * (factors or [1.0])[0])
    stage.optimizer_step_after_clipping = counted


def test_a_step_whose_gradients_overflow_is_skipped_and_said(make_stage):
    # red if `and` becomes `or` in the condition of the error
    stage = make_stage(EncoderRL)
    fails_in_float16(stage, 1)
    weights = [p for p in stage.parameters() if p.requires_grad]
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            weight = max(p.detach().abs().max().item() for p in weights if p.shape[1] == 4)  # LoRA's B starts at zero
            seen.append((trainer.callback_metrics["train/skipped_step"].item(), weight))

    with pytest.warns(
        UserWarning, match="step 0 is skipped: its gradients overflow in float16 at a loss scale of 65536"
    ):
        trainer, norms = fit(stage, 2, plugins=[Scaled()], callbacks=[Watch()])
    assert seen[0] == (1.0, 0.0) and seen[1][0] == 0.0 and seen[1][1] > 0
    assert not math.isfinite(norms[0]) and 0 < norms[1] < 1e3
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize(("scaled", "said"), [(False, "step 0:"), (True, "step 2, 3 steps in a row, at a loss")])
def test_gradients_that_no_loss_scale_explains_end_the_run(make_stage, monkeypatch, scaled, said):
    # red if `scaler is None` goes, or the step is taken first: the weights would be NaN
    monkeypatch.setattr("uae_lightning.stages.common.OVERFLOWS", 2)
    stage = make_stage(EncoderRL)
    fails_in_float16(stage, 4)
    before = small.snapshot(stage)
    with pytest.raises(FloatingPointError, match=f"norm of the gradients is (nan|inf) at {said}.*not taken. Lower"):
        fit(stage, 4, plugins=[Scaled()] if scaled else [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.snapshot(stage).items())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_rounds_what_is_trained_is_refused(precision):
    # red without check_precision in one of the two classes
    config = "conf/scenes/encoder_rl.yaml"
    for run in (parse_stage, run_stage):
        with pytest.raises(UsageError, match=f"trainer.precision {precision} .*bf16-mixed.*dtype: bfloat16"):
            run(["fit", f"--config={config}", f"--trainer.precision={precision}"])
