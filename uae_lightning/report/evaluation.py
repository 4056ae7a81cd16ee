"""What changed, by judges that were not the reward: figures of `uae evaluate` before and after a run."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from uae_lightning.evaluation.image_health import STATISTICS
from uae_lightning.scenes.prompts import TASKS

Interval = dict[str, float]

MOMENTS = ("before", "after")
BEFORE, AFTER = "#8a9199", "#2563a8"
WIDTH, HEIGHT, PAD = 240, 24, 8  # px of a row's drawing


@dataclass(frozen=True)
class Row:
    path: str  # of the figure
    title: str
    better: int = 1  # 1 where more is better, -1 where less is, 0 where neither


@dataclass(frozen=True)
class Group:
    """Rows that are drawn on one scale.

    Args:
        high: end of the scale, which begins at 0; None is what the rows need.
    """

    title: str
    text: str
    rows: tuple[Row, ...]
    high: float | None = 1.0


KINDS = ("class", "color", "size", "position", "count", "background")


def evaluation_section(evaluation: dict[str, Any]) -> str:
    """A table of before, after and paired gain, each row with its intervals drawn; only what was measured."""
    shown = []
    for group in groups(evaluation):
        rows = [row for row in group.rows if has(evaluation, row.path)]
        if rows:
            top = group.high or 1.05 * max(
                at(evaluation[moment], row.path)["high"] for row in rows for moment in MOMENTS
            )
            heading = f"<b>{escape(group.title)}</b> <small>{escape(group.text)}</small>"
            shown.append(f'<tr class="group"><td colspan="5">{heading}</td></tr>')
            shown += [drawn_row(row, evaluation, top) for row in rows]
    head = "".join(f"<th>{name}</th>" for name in ("", "Before", "After", "Gain", key()))
    return (
        f"<h2>What changed, by judges that were not the reward</h2><p>{escape(introduction(evaluation))}</p>"
        f'<div class="wide"><table class="evaluation"><tr>{head}</tr>{"".join(shown)}</table></div>'
    )


def groups(evaluation: dict[str, Any]) -> list[Group]:
    backbones = evaluation["before"].get("unified_bench", {}).get("backbones", {})
    kin = evaluation.get("kin_of_reward", [])
    notes = {name: f"{name} (shares weights with the reward)" if name in kin else name for name in backbones}
    return [
        Group(
            "Round trip",
            "picture, caption, picture: cosine to the source",
            (
                Row("unified_bench/overall", "unified score"),
                *(Row(f"unified_bench/backbones/{name}", note) for name, note in notes.items()),
            ),
        ),
        Group(
            "Drawing",
            "GenEval's six tasks, from prompts never seen in training: share of pictures that are right",
            (Row("geneval/overall", "overall"), *(Row(f"geneval/{task}", task.replace("_", " ")) for task in TASKS)),
        ),
        Group(
            "Seeing",
            "share of the facts of a picture that its caption gets right",
            (
                Row("perception/overall", "overall"),
                *(Row(f"perception/{kind}", kind) for kind in KINDS),
                Row("perception/small_objects", "small objects"),
                Row("perception/hallucination", "objects that are not there", -1),
                Row("perception/questions/overall", "questions answered"),
            ),
        ),
        Group("Caption length", "", (Row("language/tokens", "tokens", 0),), None),
        Group(
            "Language",
            "captions must stay language",
            (
                Row("language/parses", "every clause is understood"),
                Row("language/grammatical", "clauses of a known form", 0),
                Row("language/repetition", "repetition", -1),
            ),
        ),
        Group(
            "Perplexity",
            "of captions under the encoder before RL",
            (Row("language/perplexity", "per token", -1),),
            None,
        ),
        Group(
            "Pictures",
            "statistics that no reward asks for, over those of the originals; 1 is alike",
            tuple(Row(f"images/{name}", name.replace("_", " "), 0) for name in STATISTICS),
            2.0,
        ),
    ]


def introduction(evaluation: dict[str, Any]) -> str:
    """Who was the reward, what was measured on how much, and how often the judges are right."""
    paths = [path for path in ("unified_bench/overall", "geneval/overall") if has(evaluation, path)]
    counts = " and ".join(str(at(evaluation["before"], path)["n"]) for path in paths)
    sentences = [f"Start and end of the run on held-out data{f' (n = {counts})' if counts else ''}."]
    if evaluation.get("reward"):
        sentences.append(f"The reward was {evaluation['reward']}, which is none of these judges.")
    sentences.append(
        "A gain is the mean difference of the same pictures or prompts; brackets and bars are 95% intervals."
    )
    if right := accuracies(evaluation.get("instruments", {})):
        known = ", ".join(f"{name} {interval['mean']:.1%}" for name, interval in right.items())
        sentences.append(f"How often the judges themselves are right where the truth is known: {known}.")
    return " ".join(sentences)


def accuracies(instruments: dict[str, Any]) -> dict[str, Interval]:
    judges = {"object detector": at(instruments, "geneval/overall"), "caption parser": at(instruments, "parser")}
    judges |= {name: of["overall"] for name, of in instruments.get("backbones", {}).items()}
    return {name: interval for name, interval in judges.items() if interval}


def highest(evaluation: dict[str, Any], rows: list[Row]) -> float:
    """The end of the longest interval."""
    return max(at(evaluation[moment], row.path)["high"] for row in rows for moment in MOMENTS)


def has(evaluation: dict[str, Any], path: str) -> bool:
    return all(at(evaluation[part], path) for part in (*MOMENTS, "gain"))


def at(figures: dict[str, Any], path: str) -> Interval | None:
    for name in path.split("/"):
        figures = (figures or {}).get(name)
    return figures


# ------------------------------------------------------------------------------------------------ one row


def drawn_row(row: Row, evaluation: dict[str, Any], top: float) -> str:
    before, after, gain = (at(evaluation[part], row.path) for part in (*MOMENTS, "gain"))
    digits = 1 if top > 5 else 3
    sure = (gain["low"] > 0) - (gain["high"] < 0)  # 1 rose, -1 fell, 0 either
    kind = {1: "good", -1: "bad"}.get(sure * row.better, "")
    cells = [
        escape(row.title),
        f"{before['mean']:.{digits}f}",
        f"{after['mean']:.{digits}f}",
        f'<span class="{kind}">{gain["mean"]:+.{digits}f}</span> '
        f"<small>[{gain['low']:+.{digits}f}, {gain['high']:+.{digits}f}]</small>",
        bars(before, after, top, row.title),
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
