"""The figures of an evaluation for a person to read."""

from __future__ import annotations

from typing import Any

from uae_lightning.evaluation.intervals import OVERALL, Interval

INSTRUMENTS = "instruments"  # the suite that measures judges
TRUSTED = 0.97  # a judge that is right less often is no instrument


def table(record: dict[str, Any]) -> str:
    """Every figure on a line, the judges' own accuracy beside theirs, and a warning of judges that err too often."""
    lines, right = [], accuracies(record)
    for suite, figures in record["figures"].items():
        lines.append(f"\n{suite}")
        floors = {name: one for name, one in figures.items() if name.startswith("floor/")}
        shown = right | floors if suite == INSTRUMENTS else figures
        lines += [line(name, interval, remark(record, suite, name)) for name, interval in shown.items()]
    if weak := [f"{name} {one['mean']:.3f}" for name, one in right.items() if one["mean"] < TRUSTED]:
        lines.append(f"\nwarning: judges that are right less than {TRUSTED:.0%} of the time: {', '.join(weak)}")
    return "\n".join(lines)


def accuracies(record: dict[str, Any]) -> dict[str, Interval]:
    """How often each judge is right, without the single kinds of fault that backbones are checked with."""
    found = record["figures"].get(INSTRUMENTS, {})
    return {
        name: one for name, one in found.items()
        if not name.startswith("floor/") and (name.count("/") < 2 or name.endswith(f"/{OVERALL}"))
    }  # fmt: skip


def line(name: str, interval: Interval, remark: str) -> str:
    span = f"[{interval['low']:.4f}, {interval['high']:.4f}]"
    return f"  {name:36} {interval['mean']:10.4f}  {span:22} n={interval['n']:<5} {remark}".rstrip()


def remark(record: dict[str, Any], suite: str, name: str) -> str:
    """What the judge of a figure is worth: how often it is right, and whether it is close to the reward."""
    judged_by = record["suites"][suite]["instruments"].get(name)
    judge = record["figures"].get(INSTRUMENTS, {}).get(judged_by)
    notes = [f"judge right {judge['mean']:.3f}"] if judge else []
    if name in record["kin_of_reward"]:
        notes.append("shares weights with the reward")
    return ", ".join(notes)
