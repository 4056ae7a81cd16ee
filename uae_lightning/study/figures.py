"""The figures of results.md: curves and bars as SVG that stand alone, and pictures along a run as one PNG."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from uae_lightning.report.charts import Band, Frame, Line, line_chart, ticks
from uae_lightning.report.pictures import Column, column_at, originals_in
from uae_lightning.run import folder as run_folder

COLORS = ("#2563a8", "#b4632a", "#2f7d4f", "#8a3fa0", "#b23b30", "#5f6770", "#0f8b8d", "#c29a17", "#7a5c3e")
STYLE = """
svg { font-family: "Source Sans 3", "Segoe UI", system-ui, sans-serif; background: #fff; }
.grid { stroke: #e3e0d8; } .axis { stroke: #b9b4a8; } .tick { font-size: 11.5px; fill: #5f6770; }
.end { text-anchor: end; } .middle { text-anchor: middle; } .label { font-size: 13px; fill: #22262b; }
.band { font-size: 12px; fill: #5f6770; text-anchor: middle; font-weight: 600; }
"""


def standalone(svg: str, title: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """An <svg viewBox="0 0 W H"> of `charts` as a file: with its style, a white ground, a title and a legend above."""
    width, height = (int(part) for part in svg.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split())
    head = f'<text x="12" y="20" class="label" font-weight="600">{escape(title)}</text>'
    x, y = 12, 42
    for name, color in legend:
        if x + 30 + 7 * len(name) > width:
            x, y = 12, y + 20
        head += f'<rect x="{x}" y="{y - 9}" width="16" height="4" fill="{color}"/>'
        head += f'<text x="{x + 22}" y="{y - 3}" class="tick">{escape(name)}</text>'
        x += 40 + 7 * len(name)
    top = y + 8 if legend else 30
    inner = svg.replace("<svg ", f'<svg x="0" y="{top}" width="{width}" height="{height}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + top}" width="{width}" '
        f'height="{height + top}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{head}{inner}'
        "</svg>\n"
    )


# ------------------------------------------------------------------------------------------------ curves


Track = tuple[list[float], list[float]]  # one measure along the stages of a run: xs and ys


def track(stages: list[Path], measure: str, spans: list[float]) -> Track:
    """Means over the held-out pictures at every validation; `spans` is how far each stage reaches on the x axis."""
    xs, ys, offset = [], [], 0.0
    for stage, span in zip(stages, spans, strict=True):
        rows = run_folder.read_rows(stage)
        xs += [offset + span * row["step"] / max(rows[-1]["step"], 1) for row in rows]
        ys += [sum(row[measure]) / len(row[measure]) for row in rows]
        offset += span
    return xs, ys


def curves(groups: dict[str, list[Track]], bands: Sequence[Band], title: str) -> str:
    """A color for each group, such as an arm: its seeds thin, their mean thick."""
    lines = []
    for color, tracks in zip(COLORS * len(groups), groups.values(), strict=False):
        if len(tracks) > 1:
            lines += [Line(xs, ys, color=color, opacity=0.3) for xs, ys in tracks]
        mean = [sum(ys) / len(ys) for ys in zip(*(ys for _, ys in tracks), strict=True)]
        lines.append(Line(tracks[0][0], mean, color=color, dots=True))
    legend = list(zip(groups, COLORS * len(groups), strict=False)) if len(groups) > 1 else []
    return standalone(line_chart(lines, bands=bands, height=280, label=title), title, legend)


# ------------------------------------------------------------------------------------------------ bars


def bars(rows: Sequence[tuple[str, dict, dict]], title: str) -> str:
    """Before and after side by side, intervals as whiskers: (label, before, after), values from 0 to 1."""
    width, height = 900, 280
    frame = Frame((0.0, float(len(rows))), (0.0, 1.0), width, height)
    floor, body = height - frame.bottom, []
    for value in ticks(0.0, 1.0):
        y = frame.y(value)
        body.append(f'<line x1="{frame.left}" x2="{width - frame.right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        body.append(f'<text x="{frame.left - 6}" y="{y + 4:.1f}" class="tick end">{value:.2g}</text>')
    side = (frame.x(1) - frame.x(0)) * 0.32
    for number, (label, *pair) in enumerate(rows):
        middle = frame.x(number + 0.5)
        for x, color, one in zip((middle - side - 1, middle + 1), ("#b9c4cf", COLORS[0]), pair, strict=True):
            top, low, high = (frame.y(one[key]) for key in ("mean", "low", "high"))
            center = x + side / 2
            body.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{side:.1f}" height="{floor - top:.1f}" fill="{color}"/>'
            )
            body.append(f'<line x1="{center:.1f}" x2="{center:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="#22262b"/>')
        body.append(f'<text x="{middle:.1f}" y="{floor + 18}" class="tick middle">{escape(label)}</text>')
    body.append(f'<line x1="{frame.left}" x2="{width - frame.right}" y1="{floor}" y2="{floor}" class="axis"/>')
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
    return standalone(svg, title, [("start", "#b9c4cf"), ("end", COLORS[0])])


# ------------------------------------------------------------------------------------------------ pictures


def columns_along(stages: list[Path], most: int = 8) -> list[Column]:
    """Originals, then reconstructions and captions at the start, at the end of each stage, and at some of the other
    validations, `most` in all if the stages are fewer."""
    start, ends, others = [], [], []  # (when, column)
    for number, stage in enumerate(stages):
        folder = stage / "gallery"
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        *steps, last = sorted(map(int, captions))
        column = functools.partial(column_at, folder=folder, captions=captions)
        if number == 0:
            start = [((0, 0), column("start", step=steps[0]))]
        others += [((number, step), column(f"{stage.name} {step}", step=step)) for step in steps[1:]]
        ends.append(((number, last), column(f"{stage.name} {last}", step=last)))
    room = min(len(others), max(0, most - 1 - len(ends)))
    picked = [others[(2 * place + 1) * len(others) // (2 * room)] for place in range(room)]  # evenly
    moments = [column for _, column in sorted(start + picked + ends, key=lambda moment: moment[0])]
    return [*originals_in(stages[0] / "gallery"), *moments]


def contact_sheet(columns: list[Column], side: int = 96, gap: int = 6, head: int = 40) -> Image.Image:
    """A column for each moment, a row for each picture; 256 colors, so that the file stays small."""
    rows = len(columns[0].pictures)
    sheet = Image.new("RGB", (gap + len(columns) * (side + gap), head + rows * (side + gap)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for x, column in enumerate(columns):
        left = gap + x * (side + gap)
        text = "\n".join(column.title.replace("_", " ").rsplit(" ", 1))
        draw.multiline_text((left + side / 2, head / 2), text, fill="#454b52", font=font, anchor="mm", align="center")
        for y, picture in enumerate(column.pictures):
            large = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(large, (left, head + y * (side + gap)))
    return sheet.quantize(256, dither=Image.Dither.NONE)
