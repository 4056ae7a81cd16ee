"""Who loses the reward: what each link of the chain from a picture to its reconstruction takes off."""

from __future__ import annotations

from html import escape
from typing import Any

from uae_lightning.evaluation.intervals import Interval

WIDTH, HEIGHT, LEFT = 1000, 22, 64  # px of a bar, and of the word before it


def losses_section(evaluation: dict[str, Any]) -> str:
    """A bar before and one after the run for each suite that says what its links are; nothing where none does."""
    blocks = []
    for suite, about in evaluation["suites"].items():
        links = about.get("links", [])
        moments = {moment: evaluation[moment].get(suite, {}) for moment in ("before", "after")}
        if links and all(link["after"] in figures for link in links for figures in moments.values()):
            lost = {moment: losses(links, figures) for moment, figures in moments.items()}
            blocks.append(f"<p>{escape(in_words(lost))}</p>{bars(lost)}")
    if not blocks:
        return ""
    return (
        "<h2>Who loses the reward</h2><p>The same held-out pictures come back by ways that leave a link of the chain "
        "out; what two ways differ in is what the link costs, of a reward that is 1 for the picture itself. Means; "
        f"their intervals stand in the table above.</p>{''.join(blocks)}"
    )


def losses(links: list[dict[str, Any]], figures: dict[str, Interval]) -> dict[str, float]:
    """Link -> reward that it takes off."""
    mean = lambda name: 1.0 if name is None else figures[name]["mean"]  # noqa: E731
    return {link["title"]: mean(link["before"]) - mean(link["after"]) for link in links}


def in_words(lost: dict[str, dict[str, float]]) -> str:
    """Who loses how much at the start and at the end, and who loses most there."""
    sentences = []
    for moment, when in (("before", "At the start"), ("after", "At the end")):
        named = ", ".join(f"the {name} {value:.3f}" for name, value in lost[moment].items())
        sentences.append(f"{when} {sum(lost[moment].values()):.3f} of the reward is lost: {named}.")
    most = max(lost["after"], key=lambda name: lost["after"][name])
    return " ".join([*sentences, f"Most is lost by the {most}."])


def bars(lost: dict[str, dict[str, float]]) -> str:
    """An <svg>: a stacked bar for each moment on one scale. A link that gains (a drawing of a caption that says too
    little may be better for it) has no width."""
    most = max(sum(max(value, 0.0) for value in of.values()) for of in lost.values()) or 1.0
    shapes = []
    for row, (moment, of) in enumerate(lost.items()):
        x, y = float(LEFT), row * (HEIGHT + 6)
        shapes.append(f'<text x="0" y="{y + 15}" class="tick">{moment}</text>')
        for number, (name, value) in enumerate(of.items()):
            width = max(value, 0.0) / most * (WIDTH - LEFT)
            text = f"{name} {value:.3f}"
            shapes.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT}" class="part{number % 5}">'
                f"<title>{escape(text)}</title></rect>"
            )
            if width > 7.5 * len(text):
                shapes.append(f'<text x="{x + 6:.1f}" y="{y + 15}" class="inside">{escape(text)}</text>')
            x += width
    height = 2 * HEIGHT + 6
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="losses">{"".join(shapes)}</svg>'
    return f'<div class="chart">{drawing}</div>'
