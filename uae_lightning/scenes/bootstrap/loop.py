"""One resumable training loop for all backbones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from uae_lightning.files import replacing
from uae_lightning.terminal.progress import say, time_left, watched

SAVE_SECONDS = 180  # a run that gets little of the machine loses no more than that
LossFunction = Callable[[int], dict[str, Tensor]]  # step -> named terms; their sum is the loss


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 100, decay_share: float = 0.35) -> float:
    """Linear warm-up, a plateau, linear decay to zero over the last `decay_share` of the steps."""
    decay_start = steps * (1 - decay_share)
    down = min(1.0, (steps - step) / (steps - decay_start)) if decay_share else 1.0
    return peak * min(1.0, (step + 1) / warmup) * down


def train(
    model: nn.Module,
    loss_function: LossFunction,
    *,
    steps: int,
    lr: float,
    work: Path,
    ema_decay: float = 0.997,
    weight_decay: float = 0.01,
    matrices: Sequence[nn.Parameter] = (),
    report: Callable[[int], str] | None = None,
    report_every: int = 500,
    save_every: int = 250,
) -> float:
    """Train all parameters of `model` that require gradients; leaves the averaged weights in it.

    `matrices` among them are left to Muon (its steps scaled to AdamW's), all others to AdamW.
    Parameters in half precision have a copy in float32, to which the optimizer's small steps are added. Data and noise
    must be functions of the step, so that a run killed at any moment and started again ends in the same weights.
    Returns the CPU-seconds spent, earlier runs counted in.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [p.detach().clone().float() for p in parameters]
    average = [w.clone() for w in weights]
    optimizers = _optimizers(weights, [any(p is m for m in matrices) for p in parameters], lr, weight_decay)
    checkpoint, start, seconds = work / "state.pt", 0, 0.0
    work.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start, seconds = state["step"], state["seconds"]
        for optimizer, known in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        for target, source in zip(weights + average, state["parameters"] + state["average"], strict=True):
            target.copy_(source)
        _copy(weights, parameters)
    began, saved, sums = time.process_time(), time.monotonic(), {}
    for step in watched(range(start, steps), steps, "step", work.name, done=start):
        terms = loss_function(step)
        loss = sum(terms.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{work.name}: loss is {loss.item()} at step {step}")
        loss.backward()
        for weight, parameter in zip(weights, parameters, strict=True):
            weight.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr)
            optimizer.step()
        _copy(weights, parameters)
        decay = min(ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, weights, 1 - decay)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        done = step + 1
        if done % save_every == 0 or done == steps or time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            spent = seconds + time.process_time() - began
            state = {"step": done, "seconds": spent, "parameters": weights, "average": average}
            with replacing(checkpoint) as partial:
                torch.save(state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]}, partial)
        if done % report_every == 0 or done == steps:
            spent = seconds + time.process_time() - began
            means = "  ".join(
                f"{name} {value / (done % report_every or report_every):.4f}" for name, value in sums.items()
            )
            extra = ""
            if report is not None:
                _copy(average, parameters)
                extra = report(done)
                _copy(weights, parameters)
            left = time_left(spent, done, steps)
            say(f"{work.name}  step {done}/{steps}  {spent:.0f} s, {left}  {means}  {extra}")
            sums = {}
    _copy(average, parameters)
    return seconds + time.process_time() - began


def _copy(sources: list[Tensor], targets: list[nn.Parameter]) -> None:
    torch._foreach_copy_([p.data for p in targets], sources)


def _optimizers(
    weights: list[Tensor], by_muon: list[bool], lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    others, matrices = (
        [w for w, muon in zip(weights, by_muon, strict=True) if muon == wanted] for wanted in (False, True)
    )
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")]
