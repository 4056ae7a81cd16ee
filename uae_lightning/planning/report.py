"""A plan as a table for people and as JSON for programs."""

from __future__ import annotations

from typing import Any

from uae_lightning.planning.stage_plan import GB, StagePlan

PHASES = {
    "captions": "rollout: caption generation",
    "pictures": "rollout: sampling, VAE decoding",
    "reward": "reward",
    "update": "update: forward, backward",
    "auxiliaries": "update: auxiliary losses",
    "optimizer": "update: clipping, optimizer",
    "validation": "validation",
}
CALLS = (
    "tokens", "captions scored", "texts read", "velocities", "pictures encoded", "pictures decoded", "pictures judged",
)  # fmt: skip
SIZES = (
    "weights", "gradients", "optimizer", "average", "rollout", "latents", "activations", "logits", "kv_cache",
)  # fmt: skip


def table(plan: StagePlan) -> str:
    lines = [heading(plan), *part_lines(plan), "", *memory_lines(plan), "", *phase_lines(plan), "", *work_lines(plan)]
    return "\n".join([*lines, verdict(plan)])


def heading(plan: StagePlan) -> str:
    devices = plan.devices
    where = "one device" if devices.count == 1 else f"each of {devices.count} devices, {devices.strategy}"
    return f"{plan.name} ({plan.kind}), {where}"


def part_lines(plan: StagePlan) -> list[str]:
    lines = [row("", "parameters", "trainable", "GB", "as")]
    for part in plan.parts:
        kinds = ", ".join(part.bytes) or "-"
        trainable = millions(part.trainable) if part.trainable else "-"
        lines.append(row(part.name, millions(part.parameters), trainable, gb(sum(part.bytes.values())), kinds))
    return lines


def memory_lines(plan: StagePlan) -> list[str]:
    sizes = {
        "weights": plan.weights,
        "gradients": plan.gradients,
        "optimizer state": plan.optimizer,
        "moving average": plan.average,
        "kept from the rollout": plan.rollout,
        "  latents": plan.latents,
        "activations of a micro-batch": plan.activations,
        "  logits": plan.logits,
        "KV cache": plan.kv_cache,
    }
    return [f"  {name:<34}{gb(size):>10} GB" for name, size in sizes.items() if size]


def phase_lines(plan: StagePlan) -> list[str]:
    lines = [f"  {'phase':<34}{'peak GB':>10}{'TFLOP':>12}"]
    for name in [*(name for name in PHASES if name in plan.phases), *(plan.phases.keys() - PHASES)]:
        phase = plan.phases[name]
        mark = "  <- peak" if name == plan.peak_phase else ""
        lines.append(f"  {PHASES.get(name, name):<34}{gb(phase.peak):>10}{phase.flops / 1e12:>12,.3g}{mark}")
    return lines


def work_lines(plan: StagePlan) -> list[str]:
    calls = [f"{plan.calls[verb]:,} {verb}" for verb in CALLS if plan.calls[verb]]
    lines = [f"  An optimizer step: {', '.join(calls)}; {plan.flops / 1e12:,.3g} TFLOP on each device"]
    if plan.seconds is not None:
        lines.append(
            f"  {duration(plan.seconds)} at {plan.rate / 1e12:,.3g} TFLOP/s; generation, which waits for memory at "
            "each token, takes longer"
        )
    if plan.exchange.total:
        lines.append(exchange_line(plan))
    return lines


def exchange_line(plan: StagePlan) -> str:
    parts = {"of weights": plan.exchange.weights, "of gradients": plan.exchange.gradients}
    sizes = " and ".join(f"{gb(size)} GB {name}" for name, size in parts.items() if size)
    time = ""
    if plan.seconds_exchanging is not None:
        time = f": {duration(plan.seconds_exchanging)} at {plan.link / GB:g} GB/s, beside the computing where it can"
    return f"  Each device receives {sizes}{time}"


def verdict(plan: StagePlan) -> str:
    peak = f"peak {gb(plan.peak)} GB in {plan.peak_phase}"
    if plan.allowance:
        peak += f" + {gb(plan.allowance)} GB for CUDA and fragmentation = {gb(plan.needed)} GB"
    if plan.fits is None:
        return f"{plan.name}: {peak}"
    word = "fits" if plan.fits else "DOES NOT FIT"
    return f"{plan.name}: {word} {plan.card:g} GB: {peak}"


def as_json(plan: StagePlan) -> dict[str, Any]:
    """Sizes in bytes per device, FLOPs per optimiser step."""
    return {
        "name": plan.name,
        "stage": plan.kind,
        "devices": plan.devices.count,
        "strategy": plan.devices.strategy,
        "parts": [vars(part) for part in plan.parts],
        "bytes": {name: getattr(plan, name) for name in SIZES},
        "phases": {
            name: {"peak": phase.peak, "flops": phase.flops, "calls": dict(phase.calls)}
            for name, phase in plan.phases.items()
        },
        "peak": plan.peak,
        "peak_phase": plan.peak_phase,
        "allowance": plan.allowance,
        "card": None if plan.card is None else int(plan.card * GB),
        "fits": plan.fits,
        "exchange": vars(plan.exchange),
        "flops": plan.flops,
        "flops_per_second": plan.rate,
        "seconds": plan.seconds,
    }


def row(name: str, parameters: str, trainable: str, size: str, kinds: str) -> str:
    return f"  {name:<14}{parameters:>14}{trainable:>14}{size:>10}  {kinds}"


def gb(size: float) -> str:
    return f"{size / GB:,.2f}" if size >= GB / 100 else f"{size / GB:.4f}"


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def duration(seconds: float) -> str:
    return f"{seconds:,.2g} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
