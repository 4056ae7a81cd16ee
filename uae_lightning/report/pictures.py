"""The grid over time: the same few held-out pictures at the start of a run and after each stage."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from uae_lightning.report.captions import as_html
from uae_lightning.run import folder as run_folder

ORIGINAL = "original"
CRISP = 200  # px: smaller pictures are enlarged pixel by pixel


@dataclass(frozen=True)
class Column:
    """The same few held-out pictures at one moment of the run."""

    title: str
    pictures: list[Image.Image]
    captions: list[str]


def gallery_columns(stages: list[Path]) -> list[Column]:
    """Originals where there are some, the start, and the end of each stage, from the stages' folders; nothing without a
    gallery."""
    galleries = [stage / "gallery" for stage in stages if (stage / "gallery" / "captions.json").exists()]
    if not galleries:
        return []
    columns = originals_in(galleries[0])
    for number, folder in enumerate(galleries):
        captions = run_folder.read_json(folder / "captions.json")
        steps = sorted(map(int, captions))
        if number == 0:
            columns.append(column_at("at the start", folder, captions, steps[0]))
        step = run_folder.handed_on_step(folder.parent)
        step = step if step in steps else steps[-1]
        if steps[-1] > 0:
            columns.append(column_at(f"after {folder.parent.name}", folder, captions, step))
    return columns


def originals_in(folder: Path) -> list[Column]:
    """The column of a gallery's originals; none where it shows what was drawn of prompts."""
    if not (folder / "originals.png").exists():
        return []
    originals = pictures_of(folder / "originals.png")
    return [Column(ORIGINAL, originals, [""] * len(originals))]


def column_at(title: str, folder: Path, captions: dict[str, list[str]], step: int) -> Column:
    return Column(title, pictures_of(folder / f"step-{step:06d}.png"), captions[str(step)])


def pictures_of(path: Path) -> list[Image.Image]:
    """A row of square pictures, cut up."""
    row = Image.open(path).convert("RGB")
    side = row.height
    return [row.crop((left, 0, left + side, side)) for left in range(0, row.width, side)]


def gallery(columns: list[Column], marked: list[list[str]], legend: str = "") -> str:
    """A strip for each picture: the original, then what was drawn of its caption at each moment of the run.

    Args:
        marked: of each picture its captions, as `CaptionMarker` gives them.
        legend: what the marks mean.
    """
    if not columns:
        return ""
    strips, moments = [], drawn(columns)
    for row, captions in enumerate(marked):
        shown = [figure(column, row, "") for column in columns if column.title == ORIGINAL]
        shown += [figure(column, row, text) for column, text in zip(moments, captions, strict=True)]
        strips.append(f'<div class="strip">{"".join(shown)}</div>')
    about = (
        "The same held-out pictures along the run: the encoder writes the caption, and the decoder draws the picture "
        "above it from that caption alone."
        if len(moments) < len(columns)
        else "The same held-out prompts along the run: the decoder draws the picture above each."
    )
    return f"<h2>What it looks like</h2><p>{about} {escape(legend)}</p>{''.join(strips)}"


def drawn(columns: list[Column]) -> list[Column]:
    """Those of drawings, in the order of time."""
    return [column for column in columns if column.title != ORIGINAL]


def figure(column: Column, row: int, marked: str) -> str:
    """A picture with its moment and its caption; small ones are enlarged without smoothing."""
    picture = column.pictures[row]
    crisp = ' class="crisp"' if picture.width < CRISP else ""
    return (
        f'<figure><span class="when">{escape(column.title)}</span><img{crisp} src="{embedded(picture)}" '
        f'alt="{escape(column.captions[row] or "original")}"><figcaption>{as_html(marked)}</figcaption></figure>'
    )


def before_after(columns: list[Column], side: int = 128, gap: int = 8, margin: int = 96) -> Image.Image | None:
    """Originals, first and last reconstructions, a row each, enlarged without smoothing."""
    if len(columns) < 3 or columns[0].title != ORIGINAL:
        return None
    rows = [("original", columns[0]), ("before", columns[1]), ("after", columns[-1])]
    count = len(columns[0].pictures)
    size = (margin + count * (side + gap), len(rows) * (side + gap) + gap)
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    for y, (label, column) in enumerate(rows):
        top = gap + y * (side + gap)
        draw.text((margin - 12, top + side / 2), label, fill="#454b52", font=font, anchor="rm")
        for x, picture in enumerate(column.pictures):
            image.paste(picture.resize((side, side), Image.Resampling.NEAREST), (margin + x * (side + gap), top))
    return image


def hero_section(hero: Image.Image | None) -> str:
    if hero is None:
        return ""
    return f'<img class="hero" src="{embedded(hero)}" alt="originals, reconstructions before and after the run">'


def embedded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
