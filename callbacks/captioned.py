"""Pictures with their captions beside them, as one picture: TensorBoard's image cards have no text."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 192  # px of a picture, at least
TEXT, GAP = 380, 12  # px: width of the captions, and around everything
LETTERS, LINE, SIZE = 46, 20, 15  # in a line of text; px between lines; of the font


def captioned(rows: list[Tensor], captions: list[str]) -> Tensor:
    """Rows of N pictures, [3, H, N * H] uint8 each, such as originals and reconstructions -> [3, H', W'] uint8: a line
    for each of the N, its pictures beside each other and its caption behind them. Small pictures are enlarged."""
    scale = max(1, -(-SIDE // rows[0].shape[1]))
    side = rows[0].shape[1] * scale
    page = Image.new("RGB", (GAP + len(rows) * (side + GAP) + TEXT, GAP + len(captions) * (side + GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(SIZE)
    for column, row in enumerate(rows):
        strip = Image.fromarray(row.permute(1, 2, 0).numpy())
        for number in range(len(captions)):
            left = number * strip.height
            picture = strip.crop((left, 0, left + strip.height, strip.height))
            place = (GAP + column * (side + GAP), GAP + number * (side + GAP))
            page.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    for number, caption in enumerate(captions):
        lines = textwrap.wrap(caption, LETTERS, max_lines=side // LINE, placeholder=" ...") or ["(empty)"]
        place = (GAP + len(rows) * (side + GAP), GAP + number * (side + GAP))
        draw.multiline_text(place, "\n".join(lines), fill="#22262b", font=font, spacing=LINE - SIZE)
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)
