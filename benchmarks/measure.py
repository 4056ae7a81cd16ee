"""How benchmarks measure: interleaved timing, FLOPs, forward passes, peak memory, and the share of the matmul peak.

Alternatives are functions without arguments that do the same work; each call does it once, start to end. They are timed
in rounds, in alternating order, and compared within a round, so that what slows the machine down for a while slows down
all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: waiting threads burn no time
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler says nothing about itself

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from uae_lightning.run.provenance import provenance

Alternatives = Mapping[str, Callable[[], object]]  # name -> does the work once

MATMUL_SECONDS = 0.2  # of plain matmuls in every round


@dataclass(frozen=True)
class Lap:
    """One call: seconds by the clock, and `busy` seconds: of all cores on a CPU, by the clock on a GPU."""

    seconds: float
    busy: float


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What is known of one alternative in one part of a benchmark."""

    part: str
    name: str
    seconds: Spread
    busy: Spread
    speedup: Spread  # seconds of the baseline over its own, round by round; 1 of the baseline itself
    busy_speedup: Spread  # the same in busy seconds: neighbours on the machine matter less
    flops: int
    forwards: dict[str, int]  # calls of each module that is counted
    peak_bytes: int  # above what was held before the call
    peak_share: float  # FLOPs per busy second over those of plain matmuls in the same rounds
    laps: list[Lap] = field(repr=False)


# ------------------------------------------------------------------------------------------------------------ time


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> Lap:
    synchronize(device)
    start, busy_start = time.perf_counter(), time.process_time()
    run()
    synchronize(device)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy_start
    return Lap(seconds, seconds if device.type == "cuda" else busy)


def interleaved(
    alternatives: Alternatives, *, rounds: int, warmup: int = 1, device: torch.device
) -> dict[str, list[Lap]]:
    """Laps of each alternative, one a round; every second round in reverse order. Warm-up rounds are not kept."""
    laps: dict[str, list[Lap]] = {name: [] for name in alternatives}
    for number in range(warmup + rounds):
        names = list(alternatives)
        gc.collect()
        for name in names if number % 2 == 0 else reversed(names):
            lap = timed(alternatives[name], device)
            if number >= warmup:
                laps[name].append(lap)
    return laps


def spread(values: Sequence[float]) -> Spread:
    low, high = np.quantile(values, [0.25, 0.75]).tolist()
    return Spread(statistics.median(values), low, high)


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Of `over[r] / under[r]`: values of the same round are compared, not medians of all rounds."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


# ------------------------------------------------------------------------------------------- work and memory of a call


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matmuls, convolutions and attention; forward and backward."""
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    aten = torch.ops.aten
    attention_on_cpu = {  # torch counts that of GPUs only
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=attention_on_cpu)


def _attention_flops(query, key, value, *_: Any, out_shape=None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient, query, key, value, *_: Any, out_shape=None, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def forwards(run: Callable[[], object], modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """How often each of the modules is called."""
    counts = dict.fromkeys(modules, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counts


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory of tensors during the call, above what was held before it."""
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())  # every allocation, and every release as a negative number
    return int(max(0, np.cumsum([0] + [change.nbytes() for change in changes]).max()))


class Matmul:
    """A call is about `MATMUL_SECONDS` of plain square matmuls; `flops` of one call."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        side = 8192 if device.type == "cuda" else 1024
        self.factors = torch.randn(2, side, side).to(device, dtype)
        self.product = torch.empty_like(self.factors[0])
        self.times = 1
        self()  # kernels are loaded
        self.times = max(1, round(MATMUL_SECONDS / timed(self, device).seconds))
        self.flops = 2 * side**3 * self.times

    def __call__(self) -> None:
        for _ in range(self.times):
            torch.matmul(*self.factors, out=self.product)


def matmul_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOPs per busy second of plain matmuls (of one core on a CPU), the median of a few calls."""
    matmul = Matmul(device, dtype)
    return statistics.median(matmul.flops / timed(matmul, device).busy for _ in range(3))


# ------------------------------------------------------------------------------------------------------- comparisons


def compare(
    part: str,
    alternatives: Alternatives,
    *,
    baseline: str,
    modules: Mapping[str, Mapping[str, nn.Module]],
    options: argparse.Namespace,
    device: torch.device,
) -> list[Row]:
    """One row per alternative.

    Args:
        part: of the benchmark, for the table ("generation", "loss", "step").
        baseline: the alternative that the others are compared with.
        modules: of each alternative, those whose calls are counted as forward passes, by the name to print.
        options: those of `add_options`.
    """
    matmul = Matmul(device, getattr(torch, options.dtype))
    laps = interleaved(
        {**alternatives, "": matmul}, rounds=options.rounds, warmup=options.warmup, device=device
    )  # fmt: skip
    plain = laps.pop("")
    rows = []
    for name, own in laps.items():
        calls: dict[str, int] = {}
        count = flops(lambda name=name, calls=calls: calls.update(forwards(alternatives[name], modules[name])))
        shares = [(count / lap.busy) / (matmul.flops / other.busy) for lap, other in zip(own, plain, strict=True)]
        rows.append(
            Row(
                part,
                name,
                seconds=spread([lap.seconds for lap in own]),
                busy=spread([lap.busy for lap in own]),
                speedup=ratios([lap.seconds for lap in laps[baseline]], [lap.seconds for lap in own]),
                busy_speedup=ratios([lap.busy for lap in laps[baseline]], [lap.busy for lap in own]),
                flops=count,
                forwards=calls,
                peak_bytes=peak_bytes(alternatives[name], device),
                peak_share=statistics.median(shares),
                laps=own,
            )
        )
    return rows


HEADER = ["part", "of", "seconds", "speed-up (quartiles)", "busy s", "speed-up", "GFLOP", "MB", "peak", "forwards"]


def table(rows: Sequence[Row]) -> str:
    """All rows in columns; `speed-up` is against the baseline, `peak` the share of the matmul peak."""
    lines = [HEADER]
    for row in rows:
        lines.append(
            [
                row.part,
                row.name,
                f"{row.seconds.median:.3f}",
                f"{row.speedup.median:.2f} ({row.speedup.low:.2f}-{row.speedup.high:.2f})",
                f"{row.busy.median:.3f}",
                f"{row.busy_speedup.median:.2f}",
                f"{row.flops / 1e9:.2f}",
                f"{row.peak_bytes / 1e6:.1f}",
                f"{row.peak_share:.0%}",
                ", ".join(f"{count} {name}" for name, count in row.forwards.items()),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column in (0, 1, len(HEADER) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)


# ------------------------------------------------------------------------------------------------------ command line


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of all benchmarks."""
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them that are not kept (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of frozen weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows, settings and versions to FILE as well")


def start(options: argparse.Namespace) -> torch.device:
    """Threads and device of the options; randomness starts at 0."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return torch.device(options.device)


def finish(command: str, options: argparse.Namespace, rows: Sequence[Row], **extra: Any) -> None:
    """Print the table; write it, with `extra` results, to `options.json` if that is given."""
    print(table(rows), flush=True)
    write(command, options, **extra, rows=[asdict(row) for row in rows])


def write(command: str, options: argparse.Namespace, **results: Any) -> None:
    """Results, settings and versions to `options.json`, if that is given."""
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        result = provenance(command) | {"settings": settings, **results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1, default=str) + "\n")


def run_main(main: Callable[[list[str]], None]) -> None:
    """`main` with the words of the command line; what its user can mend ends it with one line."""
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:  # a UsageError is a ValueError
        sys.exit(f"error: {error}")
