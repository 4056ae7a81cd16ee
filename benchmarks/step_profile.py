"""`python -m benchmarks.step_profile`: where a training step of each stage spends its time, by operation and by verb.

One step with the parts, sizes and data of conf/scenes, its reward included, is repeated with a learning rate of zero:
all laps do the same. Verbs are timed without the profiler. Operations are timed by torch.profiler, by the clock; on a
CPU, which other processes use as well, that is scaled to busy seconds. FLOPs are those of torch's flop_counter, the
peak is that of plain matmuls in the same rounds. What no operation accounts for is Python; on a GPU, waiting for it.

Norms that Qwen and SD3 write out in powers, means and products count as element-wise.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import (  # before torch
    Matmul,
    add_options,
    flop_counter,
    interleaved,
    run_main,
    start,
    timed,
    write,
)

# isort: split

import torch
import yaml
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.own_stage import build_stage, without_trainer
from callbacks import RewardCallback
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.run.memory import freed_memory_kept
from uae_lightning.scenes.data import ScenesData
from uae_lightning.types import Batch
from uae_lightning.usage import Parser

STAGES = ("decoder_pretrain", "encoder_rl", "decoder_rl")
MATMUL, OTHER, OPTIMIZER, PYTHON = "matrix products", "element-wise, reductions", "optimizer", "Python, dispatch"
KINDS = {  # of an operation: the first whose pattern is found in its name
    "attention": r"attention",
    "convolutions": r"conv(?!ert)",
    MATMUL: r"^(add)?b?(mm|mv)$|^baddbmm$",
    "normalization": r"(layer|batch|group|rms)_norm",
    "copies, indexing": r"copy_$|^_?cat$|stack|index|gather|scatter|fill|zero_|pad_nd|im2col|col2im|embedding|repeat|"
    r"where|(slice|select)_backward|nonzero|unique|arange",
    PYTHON: r"^_?(unsafe_|reshape_)?(view|alias|(un)?flatten|reshape|expand|t|transpose|permute|slice|select|split|"
    r"chunk|(un)?squeeze|unbind|narrow|as_strided|empty\w*|(zeros|ones)(_like)?|to|to_copy|clone|contiguous|detach_?|resize_|"
    r"linear|matmul|pad|item|local_scalar_dense|resolve_\w+|lift_fresh)$",
    OTHER: r"",
}
ROWS = (MATMUL, "attention", "convolutions", "normalization", OTHER, "copies, indexing", OPTIMIZER, PYTHON)


def kind_of(operation: str) -> str:
    """Of an operation of torch, "aten::mm" or "mm"."""
    name = operation.removeprefix("aten::")
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))


@dataclass(frozen=True)
class Profile:
    """Of one step; both tables are by verb, then by kind of operation."""

    stage: str
    peak: float  # FLOPs per busy second of plain matmuls
    seconds: dict[str, dict[str, float]]  # busy
    flops: dict[str, dict[str, int]]


# ---------------------------------------------------------------------------------------------------------- the step


class Step:
    """A training step of which each verb runs inside `around(verb, run)`."""

    def __init__(self, name: str, options: argparse.Namespace, device: torch.device) -> None:
        config = Path(f"conf/scenes/{name}.yaml")
        dtype = [f"--model.autoencoder.{part}.dtype={options.dtype}" for part in ("encoder", "decoder")]
        self.stage = build_stage(config, *dtype).to(device)
        data = ScenesData(**yaml.safe_load(config.read_text())["data"]["init_args"])
        self.batch: Batch = next(iter(data.train_dataloader()))
        self.batch.images, self.batch.weights = self.batch.images.to(device), self.batch.weights.to(device)
        self.device, self.around = device, lambda verb, run: run()
        without_trainer(self.stage)
        self.optimizer = self.stage.optimizers()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        if self.stage.automatic_optimization:
            self.run = self.pretrain
        else:
            self.stage.score = RewardCallback(PerceptualGrid().to(device)).score
            for verb in ("rollout", "score", "update"):
                setattr(self.stage, verb, self.within(verb, getattr(self.stage, verb)))
            self.run = lambda: self.stage.training_step(self.batch, 0)

    def within(self, verb: str, run: Callable) -> Callable:
        return lambda *args: self.around(verb, lambda: run(*args))

    def pretrain(self) -> None:
        """What Lightning's automatic optimisation does with the stage."""
        loss = self.around("forward", lambda: self.stage.training_step(self.batch, 0))
        self.around("backward", loss.backward)
        self.around("update", self.update)

    def update(self) -> None:
        parameters = [p for p in self.stage.parameters() if p.requires_grad]
        nn.utils.clip_grad_norm_(parameters, self.stage.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


# -------------------------------------------------------------------------------------------------------- measuring


def profile_of(name: str, step: Step, options: argparse.Namespace) -> Profile:
    verbs, peak = busy_by_verb(step, options)
    laps = [operations(step) for _ in range(options.rounds)]
    seconds = {}
    for verb, busy in verbs.items():
        of_kind = {kind: statistics.mean(lap[verb, kind] for lap in laps) for kind in ROWS if kind != PYTHON}
        seconds[verb] = of_kind | {PYTHON: busy - sum(of_kind.values())}
    return Profile(name, peak, seconds, flops_by_verb(step))


def busy_by_verb(step: Step, options: argparse.Namespace) -> tuple[dict[str, float], float]:
    """(Busy seconds of each verb, FLOPs per busy second of plain matmuls), medians of the rounds."""
    laps: dict[str, list[float]] = {}

    def clocked(verb: str, run: Callable) -> Any:
        results: list[Any] = []
        laps.setdefault(verb, []).append(timed(lambda: results.append(run()), step.device).busy)
        return results[0]

    matmul = Matmul(step.device, getattr(torch, options.dtype))
    step.around = clocked
    plain = interleaved(
        {"step": step.run, "": matmul}, rounds=options.rounds, warmup=options.warmup, device=step.device
    )[""]  # fmt: skip
    verbs = {verb: statistics.median(busy[options.warmup :]) for verb, busy in laps.items()}
    return verbs, statistics.median(matmul.flops / lap.busy for lap in plain)


def operations(step: Step) -> Counter[tuple[str, str]]:
    """Busy seconds of one step by (verb, kind); Python's are not among them."""
    on_gpu, verbs = step.device.type == "cuda", set()

    def traced(verb: str, run: Callable) -> Any:
        verbs.add(verb)
        with record_function(verb):
            return run()

    step.around = traced
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as trace:
        lap = timed(step.run, step.device)
    events = [event for event in trace.events() if event.device_type == DeviceType.CPU]
    of_verb = [event for event in events if event.name in verbs]
    of_optimizer = [event for event in events if event.name.startswith("Optimizer.")]
    found: Counter[tuple[str, str]] = Counter()
    for event in events:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        verb = next((other.name for other in of_verb if starts_in(event, other)), None)
        if verb is None or not (on_gpu or event.name.startswith(("aten::", "Optimizer."))):
            continue
        kind = OPTIMIZER if any(starts_in(event, other) for other in of_optimizer) else kind_of(event.name)
        found[verb, kind] += 1e-6 * spent * lap.busy / lap.seconds
    return found


def starts_in(event: Any, other: Any) -> bool:
    """By time: the backward pass on a GPU has a thread of its own."""
    return other.time_range.start <= event.time_range.start < other.time_range.end


def flops_by_verb(step: Step) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}

    def counted(verb: str, run: Callable) -> Any:
        with flop_counter() as counter:
            result = run()
        for operation, flops in counter.get_flop_counts().get("Global", {}).items():
            found.setdefault(verb, Counter())[kind_of(operation.__name__)] += flops
        return result

    step.around = counted
    step.run()
    return {verb: dict(flops) for verb, flops in found.items()}


# ---------------------------------------------------------------------------------------------------------- printing


def table(found: Profile) -> str:
    """A row per kind, then the whole, its GFLOP and its share of the matmul peak; a column per verb."""
    verbs = list(found.seconds)
    of_kind = {kind: [found.seconds[verb][kind] for verb in verbs] for kind in ROWS}
    flops = {verb: sum(found.flops.get(verb, {}).values()) for verb in verbs}
    busy, total = {verb: sum(found.seconds[verb].values()) for verb in verbs}, sum(map(sum, of_kind.values()))
    share = lambda count, seconds: f"{count / seconds / found.peak:.0%}" if count else ""  # noqa: E731
    lines = [[found.stage, "seconds", "share", "GFLOP", "peak", *verbs]]
    for kind, seconds in of_kind.items():
        count = sum(found.flops.get(verb, {}).get(kind, 0) for verb in verbs)
        gflop, spent = f"{count / 1e9:.2f}" if count else "", sum(seconds)
        cells = [f"{one:.3f}" for one in seconds]
        lines.append([kind, f"{spent:.3f}", f"{spent / total:.0%}", gflop, share(count, spent), *cells])
    whole = sum(flops.values())
    cells = [f"{one:.3f}" for one in busy.values()]
    lines.append(["all", f"{total:.3f}", "100%", f"{whole / 1e9:.2f}", share(whole, total), *cells])
    lines.append(["GFLOP of a verb", "", "", "", "", *(f"{one / 1e9:.2f}" for one in flops.values())])
    lines.append(["its share of the peak", "", "", "", "", *(share(flops[verb], busy[verb]) for verb in verbs)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'>' if number else '<'}{width}}}" for number, width in enumerate(widths)]
    return "\n".join("  ".join(formats).format(*line).rstrip() for line in lines)


def main(args: list[str]) -> None:
    options = parse(args)
    device, found = start(options), []
    for name in options.stages:
        with freed_memory_kept():  # as `uae fit` does
            found.append(profile_of(name, Step(name, options, device), options))
        print(f"{table(found[-1])}\nthe matmul peak is {found[-1].peak / 1e9:.1f} GFLOP a busy second\n", flush=True)
    command = " ".join(["python -m benchmarks.step_profile", *args])
    write(command, options, profiles=[asdict(one) for one in found])


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="default: all three")
    add_options(parser)
    parser.set_defaults(rounds=3)
    return parser.parse(args)


if __name__ == "__main__":
    run_main(main)
