"""Error of `uae plan`: the peak it predicts against the one that is measured when the same step is really run.

    python benchmarks/plan_error.py                                      the three stages of the embedded default
    python benchmarks/plan_error.py --config conf/real/encoder_rl.yaml   a full-size stage with random weights, on a GPU

On a CPU bytes are those that torch.profiler sees allocated, on a GPU torch.cuda.max_memory_allocated. Captions have
full length in both, as texts of a given length stand in for the tokenizer.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from uae_lightning.models import quantization
from uae_lightning.models.seeing import Seen
from uae_lightning.planning.stage_plan import GB, plan_built, prompts_of, setting_of
from uae_lightning.planning.step import Setting
from uae_lightning.planning.text import caption, give_text
from uae_lightning.planning.weightless import build
from uae_lightning.run.stage_cli import parse_stage, quiet
from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, Captions

SMALL = [
    (f"conf/scenes/{name}.yaml", ["--data.init_args.batch_size=2", "--trainer.accelerator=cpu", *options])
    for name, options in [
        ("decoder_pretrain", ["--data.init_args.batch_size=8"]),
        ("encoder_rl", ["--model.init_args.micro_batch=8"]),
        ("decoder_rl", ["--model.init_args.micro_batch=8"]),
    ]
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, action="append", help="of a stage; default: those of conf/scenes, small")
    options, rest = parser.parse_known_args()
    quiet()
    stages = [(config, rest) for config in options.config] if options.config else SMALL
    device = torch.device("cuda" if options.config and torch.cuda.is_available() else "cpu")
    print(f"{'stage':<20}{'phase':<12}{'predicted GB':>14}{'measured GB':>14}{'error':>9}   ({device})")
    for config, arguments in stages:
        for phase, predicted, measured in compared(str(config), arguments, device):
            error = predicted / measured - 1
            print(f"{Path(config).stem:<20}{phase:<12}{predicted / GB:>14.4f}{measured / GB:>14.4f}{error:>+9.1%}")


def compared(
    config: str, arguments: list[str], device: torch.device, seconds: dict[str, float] | None = None
) -> list[tuple[str, int, int]]:
    """(phase, predicted, measured) bytes of a stage's YAML; "step" is the largest phase but for the captions.

    Args:
        seconds: is given the time that each phase took.
    """
    cli = parse_stage(["fit", f"--config={config}", *arguments])
    setting, prompts = setting_of(cli.config.fit), prompts_of(cli.config.fit)
    plan = plan_built("plan", *build(cli), setting, prompts)
    stage, judges = build(cli)
    fill(stage, device)
    for judge in (judges.reward, judges.unrewarded):
        fill(judge, device)
        judge.eval().requires_grad_(False)
    measured = measure(stage, judges.score, setting, prompts, device, seconds)
    return [(phase, peak_of(plan, phase), bytes_) for phase, bytes_ in measured.items()]


def peak_of(plan, phase: str) -> int:
    """Predicted bytes, without the moving average, as callbacks are not run here."""
    names = {"captions"} if phase == "captions" else plan.phases.keys() - {"captions", "validation"}
    return max(plan.phases[name].peak for name in names) - plan.average


def fill(module: nn.Module, device: torch.device) -> None:
    """Random weights in place of those on the meta device; marked layers are quantised."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if kind := getattr(child, "quantization", None) if isinstance(child, nn.Linear) else None:
                child.to_empty(device=device)
                setattr(parent, name, quantization._quantized(child, kind))
    for parent in module.modules():
        for tensors in (parent._parameters, parent._buffers, parent.__dict__):
            for name, tensor in list(tensors.items()):
                if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                    tensors[name] = filled(tensor, device)


def filled(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    values = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    if values.is_floating_point():
        values.normal_(std=0.02)
        if not isinstance(tensor, nn.Parameter):
            values.abs_()  # variances are among the buffers
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


# ------------------------------------------------------------------------------------------------ measuring


def measure(
    stage: Stage,
    score: Callable,
    setting: Setting,
    prompts: dict[str, str],
    device: torch.device,
    seconds: dict[str, float] | None = None,
) -> dict[str, int]:
    """Bytes in use at most: while captions are generated, and in the rest of a step, of a stage with weights."""
    give_text(stage.encoder, prompts)
    stage._device = device
    stage._trainer = SimpleNamespace(strategy=None, global_rank=0, world_size=1, global_step=0, training=True)
    stage.log = stage.log_dict = lambda *args, **options: None
    stage.manual_backward = lambda loss: loss.backward()
    optimizer = stage.configure_optimizers()
    stage.optimizers, stage.score = lambda: optimizer, score
    side = stage.decoder.image_size
    length = stage.autoencoder.captioning.max_new_tokens
    seconds = {} if seconds is None else seconds
    images = torch.rand(setting.pictures, 3, side, side, device=device)
    batch = Batch(images, [caption(length, row) for row in range(len(images))], [""] * len(images))
    result = {}
    if stage.learns_from_reward:  # it writes captions
        stage.encoder.never_sampled.extend(stage.encoder.ends)
        policies = getattr(stage, "policies", {})
        samples = policies["captions"].group_size if "captions" in policies else 1
        arguments = {"samples": samples, "seed": 0, **vars(stage.autoencoder.captioning)}
        generate, stage.encoder.generate = stage.encoder.generate, full_length
        step(stage, batch, optimizer, setting)  # the optimiser gets its state
        writing = timed(lambda: generate(images, **arguments), "captions", seconds)
        result["captions"] = peak(writing, stage, optimizer, images)
    else:
        step(stage, batch, optimizer, setting)
    stepping = timed(lambda: step(stage, batch, optimizer, setting), "step", seconds)
    result["step"] = peak(stepping, stage, optimizer, images)
    return result


def timed(run: Callable, name: str, seconds: dict[str, float]) -> Callable:
    def inside() -> None:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - start

    return inside


def full_length(images: torch.Tensor | Seen, *, samples: int, max_new_tokens: int, **options: object) -> Captions:
    device = images.device if isinstance(images, torch.Tensor) else images.features.device
    tokens = torch.ones(len(images) * samples, max_new_tokens, dtype=torch.long, device=device)
    texts = [caption(max_new_tokens, row) for row in range(len(tokens))]
    return Captions(texts, tokens, tokens > 0, torch.zeros(tokens.shape, device=device))


def step(stage: Stage, batch: Batch, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
    mixed = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=setting.precision == "bf16-mixed")
    with mixed:
        loss = stage.training_step(batch, 0)
    if stage.automatic_optimization:
        loss.backward()
        del loss
        stage.optimizer_step_after_clipping()


def peak(run: Callable, stage: Stage, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> int:
    """Bytes alive at most during `run`, with those of weights, optimiser and the batch's images."""
    gc.collect()
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    judges = getattr(stage.score, "__self__", None)
    modules = [stage, *(judge for judge in (judges and judges.reward, judges and judges.unrewarded) if judge)]
    resting = sum(size_of(module) for module in modules) + state_size(optimizer) + images.nbytes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return resting + most


def size_of(module: nn.Module) -> int:
    tensors = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())


def state_size(optimizer: torch.optim.Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


if __name__ == "__main__":
    main()
