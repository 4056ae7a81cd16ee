"""The figures of an evaluation for a person to read."""

from __future__ import annotations

from typing import Any

SUITES = ("unified_bench", "geneval", "perception", "language", "images", "instruments")
TRUSTED = 0.97  # a judge that is right less often is no instrument


def table(record: dict[str, Any]) -> str:
    """Every figure on a line, the judges' own accuracy beside theirs, and a warning of judges that err too often."""
    lines = []
    for suite in filter(record.__contains__, SUITES):
        lines.append(f"\n{suite}")
        lines += [line(name, interval, remark(record, suite, name)) for name, interval in main_figures(record, suite)]
    accuracies = {k: v["mean"] for k, v in main_figures(record, "instruments") if not k.startswith("floor/")}
    if weak := [f"{name} {mean:.3f}" for name, mean in accuracies.items() if mean < TRUSTED]:
        lines.append(f"\nwarning: judges that are right less than {TRUSTED:.0%} of the time: {', '.join(weak)}")
    return "\n".join(lines)


def main_figures(record: dict[str, Any], suite: str) -> list[tuple[str, dict[str, float]]]:
    """All of a suite but the single kinds of fault that backbones are checked with."""
    hidden = "backbones/" if suite == "instruments" else "nothing"
    found = leaves(record.get(suite, {}))
    return [(name, one) for name, one in found if not name.startswith(hidden) or name.endswith("/overall")]


def leaves(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, float]]]:
    """Every interval by its path, such as "backbones/pixels"."""
    found = []
    for name, value in figures.items():
        path = f"{prefix}{name}"
        found += [(path, value)] if "mean" in value else leaves(value, f"{path}/")
    return found


def line(name: str, interval: dict[str, float], remark: str) -> str:
    span = f"[{interval['low']:.4f}, {interval['high']:.4f}]"
    return f"  {name:36} {interval['mean']:10.4f}  {span:22} n={interval['n']:<5} {remark}".rstrip()


def remark(record: dict[str, Any], suite: str, name: str) -> str:
    """What the judge of a figure is worth: how often it is right, and whether it is close to the reward."""
    instruments, last = record.get("instruments", {}), name.split("/")[-1]
    judge = {
        "unified_bench": instruments.get("backbones", {}).get(last, {}).get("overall"),
        "geneval": instruments.get("geneval", {}).get(last),
        "perception": instruments.get("parser") if "questions" not in name else None,
    }.get(suite)
    notes = [f"judge right {judge['mean']:.3f}"] if judge else []
    if suite == "unified_bench" and last in record["kin_of_reward"]:
        notes.append("shares weights with the reward")
    return ", ".join(notes)
