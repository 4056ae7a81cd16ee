"""What the tabs show, as HTML: pictures are inside of it, texts are escaped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from PIL import Image

from uae_lightning.app.pictures import data_url
from uae_lightning.app.prompts import Generated
from uae_lightning.app.round_trip import RoundTrip
from uae_lightning.app.watching import RunState
from uae_lightning.app.wording import GRADIENT, Listening, Redrawn

SMALL = 256  # px, pictures with shorter sides are enlarged without smoothing
MOST_CHANGED = 8  # words whose absence is shown as a picture
OF_THE_GRADIENT = (
    "norm of the picture's gradient at the states of each, as a share of that at all states, of the text and of what "
    "stands around it; the squares add up to one"
)


def figure(picture: Image.Image | None, caption: str, kind: str = "") -> str:
    """`caption` is HTML."""
    return f'<figure class="{kind}">{image(picture, caption)}<figcaption>{caption}</figcaption></figure>'


def image(picture: Image.Image | None, alt: str = "") -> str:
    if picture is None:
        return '<div class="nothing"></div>'
    kind = "pixels" if picture.width < SMALL else ""
    return f'<img class="{kind}" src="{data_url(picture)}" alt="{escape(plain(alt))}">'


def plain(text: str) -> str:
    """The first words of HTML, without its tags."""
    return text.split("<")[0].strip()


def row(figures: Sequence[str], kind: str = "") -> str:
    return f'<div class="uae-row {kind}">{"".join(figures)}</div>'


def quoted(caption: str, under_way: bool = False) -> str:
    cursor = '<span class="cursor">▍</span>' if under_way else ""
    return f'<blockquote class="uae-caption">{escape(caption)}{cursor}</blockquote>'


def slider(left: Image.Image, right: Image.Image) -> str:
    """One over the other, with a handle that a finger can move."""
    move = "this.parentNode.style.setProperty('--cut', this.value + '%')"
    return (
        f'<div class="uae-slider" style="--cut: 50%">{image(left, "original")}'
        f'<div class="over">{image(right, "reconstruction")}</div><div class="line"></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="original or drawn" oninput="{move}"></div>'
    )


# ------------------------------------------------------------------------------------------------ the tabs


def round_trip(now: RoundTrip) -> str:
    """Reconstruct: the caption, both pictures, the steps, and the rewards once it is drawn."""
    under_way = not now.done
    drawing = "reconstruction" if now.done else f"step {len(now.steps)} of {now.of}" if now.steps else "reconstruction"
    parts = [
        quoted(now.caption, under_way and not now.steps),
        row([figure(now.original, "original"), figure(now.drawing, drawing)], "pair"),
        rewards(now.scores, now.note),
    ]
    if now.done:
        parts.append(f"<h4>one over the other</h4>{slider(now.original, now.drawing)}")
    if now.of > 1 and now.steps:
        titles = [f"step {number}" for number in range(1, len(now.steps) + 1)]
        shown = [figure(picture, title) for picture, title in zip(now.steps, titles, strict=True)]
        parts.append(f"<h4>what the decoder sees, step by step</h4>{row(shown, 'steps')}")
    return block("".join(parts), now.done)


def rewards(scores: dict[str, float], note: str) -> str:
    items = [f"<li><b>{value:.4f}</b> {escape(judge)}</li>" for judge, value in scores.items()]
    said = f"<p class='note'>{escape(note)}</p>" if note else ""
    return (f'<ul class="uae-rewards">{"".join(items)}</ul>' if items else "") + said


def along(found: Sequence[RoundTrip], of: int) -> str:
    """Compare: the original, and what each moment of the run makes of it."""
    figures = [figure(found[0].original, "original")]
    for moment in found:
        scores = "".join(f"<br><b>{value:.4f}</b> {escape(judge)}" for judge, value in moment.scores.items())
        text = f"<b>{escape(moment.title)}</b>{scores}<br><q>{escape(moment.caption)}</q>"
        figures.append(figure(moment.drawing, text))
    said = rewards({}, found[0].note)
    return block(row(figures, "moments") + said, len(found) == of)


def generated(now: Generated) -> str:
    """Generate: the best drawing first."""
    parts = [] if now.text == now.prompt else [f"<h4>the prompt, rewritten</h4>{quoted(now.text)}"]
    figures = [
        figure(one.picture, f"{place}. <b>{one.score:.4f}</b><br>seed {one.seed}", "best" if place == 1 else "")
        for place, one in enumerate(now.candidates, 1)
    ]
    if now.drawing is not None:
        figures.append(figure(now.drawing, f"drawing {len(now.candidates) + 1} of {now.of}, step {now.step}"))
    ranked = f"<p class='note'>ranked by {escape(now.verifier)}; a seed alone draws its picture again</p>"
    return block("".join([*parts, row(figures, "candidates"), ranked]), len(now.candidates) == now.of)


def redrawn(found: Redrawn) -> str:
    shown = row([figure(found.before, "before"), figure(found.after, "edited")], "pair")
    return block(f"{shown}<p class='note'>pixels change by {found.change:.2%} of their range on average</p>", True)


def listening(now: Listening) -> str:
    """The caption, its pieces marked by how much they count, and the pictures without those that count most; where they
    are not drawn, a list."""
    most = max((piece.change for piece in now.pieces), default=0.0) or 1.0
    text, position = [], 0
    for piece in now.pieces:
        share = round(100 * piece.change / most)
        between, words = escape(now.text[position : piece.start]), escape(now.text[piece.start : piece.end])
        text.append(f'{between}<mark style="--share: {share}%" title="{piece.change:.2%}">{words}</mark>')
        position = piece.end
    text.append(escape(now.text[position:]))
    ranked = sorted(now.pieces, key=lambda piece: -piece.change)[:MOST_CHANGED]
    named = [(piece, f"<q>{escape(now.text[piece.start : piece.end])}</q>") for piece in ranked]
    figures, listed = [figure(now.picture, "the whole caption")], ""
    if now.way == GRADIENT:
        items = "".join(f"<li><b>{piece.change:.2%}</b> {name}</li>" for piece, name in named)
        listed = f"<p class='note'>{OF_THE_GRADIENT}</p><ul class='uae-rewards'>{items}</ul>" if items else ""
    else:
        figures += [figure(piece.without, f"without {name}<br>{piece.change:.2%}") for piece, name in named]
    done = len(now.pieces) == now.of
    counted = "computing" if now.way == GRADIENT else f"{len(now.pieces)} of {now.of}"
    state = "" if done else f"<p class='note'>{counted}</p>"
    quote = f'<blockquote class="uae-caption heard">{"".join(text)}</blockquote>'
    return block(f"{quote}{state}{listed}{row(figures)}", done)


def runs_table(states: Sequence[RunState], now: float | None = None) -> str:
    if not states:
        return block("<p>There is no run yet: <code>make demo</code> trains one in some ten minutes.</p>", True)
    lines = [
        f"<tr><td>{escape(one.name)}</td><td>{escape(one.state)}</td><td>{escape(one.stages)}</td>"
        f"<td>{escape(one.reward)}</td><td>{ago((time.time() if now is None else now) - one.changed)}</td></tr>"
        for one in states
    ]
    head = "".join(f"<th>{name}</th>" for name in ("run", "", "stages done", "held-out reward", "last written"))
    return block(f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>', True)


def ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def waiting(text: str) -> str:
    return block(f"<p class='note'>{escape(text)}</p>", False)


def framed(document: str) -> str:
    """A page of its own inside of ours: neither's styles reach the other, and it runs no scripts."""
    return f'<iframe class="uae-report" sandbox title="the run" srcdoc="{escape(document)}"></iframe>'


def report_link(run: str) -> str:
    address = f"report?run={quote(run, safe='')}"
    return f'<p><a href="{address}" target="_blank" rel="noopener">the report of this run</a></p>'


def block(content: str, done: bool) -> str:
    return f'<div class="uae" data-done="{str(done).lower()}">{content}</div>'
