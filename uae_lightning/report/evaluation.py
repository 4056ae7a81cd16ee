"""What changed, by judges that were not the reward: figures of `uae evaluate` before and after a run."""

from __future__ import annotations

from html import escape
from typing import Any

from uae_lightning.evaluation.intervals import Interval
from uae_lightning.evaluation.table import accuracies

MOMENTS = ("before", "after")
BEFORE, AFTER = "#8a9199", "#2563a8"
WIDTH, HEIGHT, PAD = 240, 24, 8  # px of a row's drawing


def evaluation_section(evaluation: dict[str, Any]) -> str:
    """A table of before, after and paired gain, each row with its intervals drawn; only what was measured."""
    shown = []
    for suite, about in evaluation["suites"].items():
        moments = [evaluation[part].get(suite, {}) for part in (*MOMENTS, "gain")]
        for group in about["groups"]:
            rows = [row for row in group["rows"] if all(row["figure"] in figures for figures in moments)]
            if rows:
                ends = [figures[row["figure"]]["high"] for row in rows for figures in moments[:2]]
                top = group["high"] or 1.05 * max(ends)
                about_it = ": ".join(filter(None, (suite, group["text"])))
                heading = f"<b>{escape(group['title'])}</b> <small>{escape(about_it)}</small>"
                shown.append(f'<tr class="group"><td colspan="5">{heading}</td></tr>')
                for row in rows:
                    figure, better = row["figure"], about["statistics"].get(row["figure"], {}).get("better", 0)
                    kin = figure in evaluation.get("kin_of_reward", [])
                    title = f"{row['title']} (shares weights with the reward)" if kin else row["title"]
                    shown.append(drawn_row(title, better, *(figures[figure] for figures in moments), top))
    head = "".join(f"<th>{name}</th>" for name in ("", "Before", "After", "Gain", key()))
    return (
        f"<h2>What changed, by judges that were not the reward</h2><p>{escape(introduction(evaluation))}</p>"
        f'<div class="wide"><table class="evaluation"><tr>{head}</tr>{"".join(shown)}</table></div>'
    )


def introduction(evaluation: dict[str, Any]) -> str:
    """Who was the reward, what was measured on how much, and how often the judges are right."""
    overall = [figures["overall"]["n"] for figures in evaluation["before"].values() if "overall" in figures]
    sentences = [f"Start and end of the run on held-out data{f' (n = {max(overall)} and less)' if overall else ''}."]
    if evaluation.get("reward"):
        sentences.append(f"The reward was {evaluation['reward']}, which is none of these judges.")
    sentences.append(
        "A gain is the mean difference of the same pictures or prompts; brackets and bars are 95% intervals."
    )
    right = {name: one for name, one in accuracies({"figures": evaluation["before"]}).items()
             if "/" not in name or name.endswith("/overall")}  # fmt: skip
    if right:
        known = ", ".join(f"{judge_title(name)} {one['mean']:.1%}" for name, one in right.items())
        sentences.append(f"How often the judges themselves are right where the truth is known: {known}.")
    return " ".join(sentences)


def judge_title(name: str) -> str:
    """Of a figure of the instruments, such as "backbones/pixels/overall"."""
    return name.removesuffix("/overall").removeprefix("backbones/").replace("_", " ")


# ------------------------------------------------------------------------------------------------ one row


def drawn_row(title: str, better: int, before: Interval, after: Interval, gain: Interval, top: float) -> str:
    digits = 1 if top > 5 else 3
    sure = (gain["low"] > 0) - (gain["high"] < 0)  # 1 rose, -1 fell, 0 either
    kind = {1: "good", -1: "bad"}.get(sure * better, "")
    cells = [
        escape(title),
        f"{before['mean']:.{digits}f}",
        f"{after['mean']:.{digits}f}",
        f'<span class="{kind}">{gain["mean"]:+.{digits}f}</span> '
        f"<small>[{gain['low']:+.{digits}f}, {gain['high']:+.{digits}f}]</small>",
        bars(before, after, top, title),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def bars(before: Interval, after: Interval, top: float, label: str) -> str:
    """An <svg>: the interval before above the one after, on a scale from 0 to `top`."""

    def x(value: float) -> float:
        return PAD + min(max(value / top, 0), 1) * (WIDTH - 2 * PAD)

    shapes = [f'<line x1="{x(0)}" x2="{x(top)}" y1="{HEIGHT / 2}" y2="{HEIGHT / 2}" class="axis"/>']
    for share in (0, 0.5, 1):
        shapes.append(
            f'<line x1="{x(share * top):.1f}" x2="{x(share * top):.1f}" y1="2" y2="{HEIGHT - 2}" class="axis"/>'
        )
    for interval, color, y in ((before, BEFORE, 7), (after, AFTER, 17)):
        low, mean, high = (x(interval[name]) for name in ("low", "mean", "high"))
        shapes.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3" opacity="0.5"/>'
            f'<circle cx="{mean:.1f}" cy="{y}" r="3.4" fill="{color}"/>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(label)}: before and after">{"".join(shapes)}</svg>'
    )


def key() -> str:
    """What the two colors mean."""
    return f'<span style="color:{BEFORE}">&#9679;</span> before <span style="color:{AFTER}">&#9679;</span> after'
