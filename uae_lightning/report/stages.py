"""What each stage of a run has left so far, what it cost, and what it brought."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.report.summary import in_brackets, paired_gain
from uae_lightning.run import folder as run_folder

WIDTH, HEIGHT = 240, 14  # px of a bar of time
WHOLE = ("steps", "validation", "start and end")  # of time.json; all else is within the steps


@dataclass(frozen=True)
class StageView:
    """What a stage has left so far."""

    name: str
    folder: Path
    rows: list[dict[str, Any]]  # validations
    record: dict[str, Any] | None  # stage.json, None while it is not done
    offset: int  # steps of the stages before it

    @property
    def steps(self) -> int:
        return self.rows[-1]["step"]


def read_stages(run: Path) -> list[StageView]:
    stages: list[StageView] = []
    for folder in run_folder.stages_of(run):
        if not (folder / "validation.jsonl").exists():
            continue
        file = folder / "stage.json"
        record = run_folder.read_json(file, "seconds", "command") if file.exists() else None
        offset = stages[-1].offset + stages[-1].steps if stages else 0
        stages.append(StageView(folder.name, folder, run_folder.read_rows(folder), record, offset))
    return stages


# ------------------------------------------------------------------------------------------------ the table


def stage_table(stages: list[StageView]) -> str:
    reward = ["Reward before", "after", "Gain", "Gain a minute", "Not rewarded: gain"]
    heads = ["Stage", *reward, "Caption tokens", "Steps", "Time"]
    longest = max([stage.record["seconds"] for stage in stages if stage.record], default=0.0)
    rows = []
    for stage in stages:
        before, after = stage.rows[0], run_folder.final_row(stage.folder)
        gain = paired_gain(before, after, "reward")
        other = signed_span(paired_gain(before, after, "unrewarded")) if "unrewarded" in before else "&ndash;"
        tokens = [sum(row["caption_tokens"]) / len(row["caption_tokens"]) for row in (before, after)]
        cells = [
            escape(stage.name),
            f"{mean_interval(before['reward'])['mean']:.4f}",
            f"{mean_interval(after['reward'])['mean']:.4f}",
            signed_span(gain),
            f"{60 * gain['mean'] / stage.record['seconds']:+.4f}" if stage.record else "&ndash;",
            other,
            f"{tokens[0]:.1f} &rarr; {tokens[1]:.1f}",
            str(stage.steps),
            time_cell(stage.record, longest) if stage.record else "under way",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        "<h2>The stages: what each cost and brought</h2><p>Each stage starts from the weights of the one before it; a "
        "gain is the mean difference of the same pictures before and after the stage. A bar is the time of a stage: "
        f"{legend()}</p>"
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def signed(gain: dict[str, float]) -> str:
    kind = "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else ""
    return f'<span class="{kind}" style="font-size:inherit">{gain["mean"]:+.4f}</span>'


def signed_span(gain: dict[str, float]) -> str:
    return f"{signed(gain)} <small>[{gain['low']:+.4f}, {gain['high']:+.4f}]</small>"


def time_cell(record: dict[str, Any], longest: float) -> str:
    time = record.get("time", {})
    text = f"{duration(record['seconds'])} <small>{escape(in_brackets(time))}</small>"
    return f'<div class="time">{text}{time_bar(time, longest)}</div>'


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ------------------------------------------------------------------------------------------------ where the time went


def parts_of(time: dict[str, float]) -> dict[str, float]:
    """Seconds by part, which sum to the whole: verbs of an RL stage, or its steps where it has none."""
    verbs = {name: seconds for name, seconds in time.items() if name not in WHOLE}
    rest = max(0.0, time.get("steps", 0.0) - sum(verbs.values()))
    named = verbs | {"other steps" if verbs else "steps": rest} | {name: time.get(name, 0.0) for name in WHOLE[1:]}
    return {name: seconds for name, seconds in named.items() if seconds > 0}


def color_of(part: str) -> str:
    """As the style sheet knows it."""
    known = {"rollout": 0, "score": 1, "update": 2, "steps": 2, "validation": 3}
    return f"part{known.get(part, 4)}"


def time_bar(time: dict[str, float], longest: float) -> str:
    """An <svg> whose length is the stage's share of the longest stage."""
    parts = parts_of(time)
    if not parts or longest <= 0:
        return ""
    shapes, x = [], 0.0
    for name, seconds in parts.items():
        width = seconds / longest * WIDTH
        shapes.append(
            f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}" class="{color_of(name)}">'
            f"<title>{escape(name)}: {duration(seconds)}</title></rect>"
        )
        x += width
    label = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(shapes)}</svg>'
    )


def legend() -> str:
    names = {"rollout": "rollout", "score": "score", "update": "update, or the steps of a stage without a reward",
             "validation": "validation", "other": "all else"}  # fmt: skip
    return ", ".join(f'<span class="key {color_of(name)}">&#9632;</span> {text}' for name, text in names.items()) + "."
