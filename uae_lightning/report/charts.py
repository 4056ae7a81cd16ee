"""Line charts as inline SVG, so that a report is one file that needs neither a library nor a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Line:
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()  # with `high`, a shaded interval around the line
    high: Sequence[float] = ()
    color: str = "#2563a8"
    opacity: float = 1.0
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name, such as a stage."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Frame:
    """Data coordinates -> pixels of the drawing."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int
    height: int
    left: int = 52
    right: int = 12
    top: int = 24
    bottom: int = 30

    def x(self, value: float) -> float:
        start, end = self.x_range
        return self.left + (value - start) / (end - start) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))


def line_chart(
    lines: list[Line], *, bands: Sequence[Band] = (), width: int = 900, height: int = 240, label: str = ""
) -> str:
    """An <svg> that scales with its column. Values that are not finite are left out."""
    lines = [finite(line) for line in lines]
    xs = [x for line in lines for x in line.xs] + [edge for band in bands for edge in (band.start, band.end)]
    ys = [y for line in lines for y in (*line.ys, *line.low, *line.high)]
    if not ys:
        return '<p class="empty">No values were logged.</p>'
    frame = Frame(widened(min(xs), max(xs), 0.0), widened(min(ys), max(ys), 0.08), width, height)
    body = [*drawn_bands(bands, frame), *drawn_axes(frame)]
    for line in lines:
        body += drawn_line(line, frame)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def finite(line: Line) -> Line:
    keep = [i for i, y in enumerate(line.ys) if math.isfinite(y)]
    picked = {name: [getattr(line, name)[i] for i in keep] if getattr(line, name) else () for name in ("low", "high")}
    return Line([line.xs[i] for i in keep], [line.ys[i] for i in keep], **picked, color=line.color,
                opacity=line.opacity, dots=line.dots)  # fmt: skip


def widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range with some room around it, and never an empty one."""
    if low == high:
        return low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    return low - share * (high - low), high + share * (high - low)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between low and high: multiples of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about + 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def drawn_bands(bands: Sequence[Band], frame: Frame) -> list[str]:
    areas, names = [], []
    for number, band in enumerate(bands):
        x, end = frame.x(band.start), frame.x(band.end)
        shade = "#eef3f8" if number % 2 == 0 else "#f8f5ee"
        half = 3.8 * len(band.name)  # px, about half of the name's width
        middle = min((x + end) / 2, frame.width - frame.right - half)
        line = 15 + 14 * (number % 2 if end - x < 2 * half else 0)  # names of narrow neighbours must not touch
        areas.append(
            f'<rect x="{x:.1f}" y="0" width="{end - x:.1f}" height="{frame.height - frame.bottom}" fill="{shade}"/>'
        )
        names.append(f'<text x="{middle:.1f}" y="{line}" class="band">{escape(band.name)}</text>')
    return areas + names


def drawn_axes(frame: Frame) -> list[str]:
    floor = frame.height - frame.bottom
    shapes = []
    for value in ticks(*frame.y_range):
        y = frame.y(value)
        shapes.append(
            f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{frame.left - 6}" y="{y + 4:.1f}" class="tick end">{value:.6g}</text>'
        )
    for value in ticks(*frame.x_range, about=6 if frame.width > 500 else 3):
        shapes.append(f'<text x="{frame.x(value):.1f}" y="{floor + 18}" class="tick middle">{value:.6g}</text>')
    shapes.append(f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{floor}" y2="{floor}" class="axis"/>')
    return shapes


def drawn_line(line: Line, frame: Frame) -> list[str]:
    shapes = []
    if line.low:
        outline = frame.path([*line.xs, *reversed(line.xs)], [*line.high, *reversed(line.low)])
        shapes.append(f'<polygon points="{outline}" fill="{line.color}" opacity="0.15"/>')
    shapes.append(
        f'<polyline points="{frame.path(line.xs, line.ys)}" fill="none" stroke="{line.color}" stroke-width="2" '
        f'opacity="{line.opacity}" stroke-linejoin="round"/>'
    )
    if line.dots:
        for x, y in zip(line.xs, line.ys, strict=True):
            shapes.append(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2" fill="{line.color}"/>')
    return shapes


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Running mean that forgets exponentially, without the usual pull towards its start."""
    mean, mass, result = 0.0, 0.0, []
    for value in values:
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        result.append(mean / mass)
    return result
