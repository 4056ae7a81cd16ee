"""Pictures as a browser sends and shows them, `data:` URLs, so that nothing of what is dropped is written to a disk."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from uae_lightning.data.images import MAX_ASPECT, MIN_SIDE, BadFile, read_picture
from uae_lightning.usage import UsageError

MOST_BYTES = 20 << 20  # of a picture's file
MOST_PIXELS = 50_000_000  # phones have 12 to 50 million
HEAD = re.compile(r"data:[\w./+-]*(;[\w.=-]+)*;base64,")


def picture_in(url: str | None, at_least: int | None = None) -> Image.Image:
    """The picture in a `data:` URL, upright and in sRGB.

    Args:
        at_least: pixels that both sides keep where a JPEG is decoded at a part of its size.

    Raises:
        UsageError: there is none, it is too large, or it is none that can be read.
    """
    if not url:
        raise UsageError("there is no picture yet: drop one, or draw a scene")
    if not (head := HEAD.match(url[:200])):
        raise UsageError("this is no picture: drop a PNG, JPEG or WebP file")
    if (len(url) - head.end()) * 3 // 4 > MOST_BYTES:
        raise UsageError(f"the file is larger than {MOST_BYTES >> 20} MB: save a smaller one, or a part of the picture")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
        bounds = {"max_pixels": MOST_PIXELS, "min_side": MIN_SIDE, "max_aspect": MAX_ASPECT}
        return read_picture(data, at_least=at_least, **bounds).image
    except binascii.Error as error:
        raise UsageError("the picture arrived damaged: drop it again") from error
    except BadFile as error:
        raise UsageError(f"this cannot be read as a picture ({error}): drop a PNG, JPEG or WebP file") from error


def data_url(picture: Image.Image) -> str:
    """As PNG, pixel for pixel."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
