"""From a sample of a source to a picture the model sees and a file the set keeps."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from uae_lightning.data.image_text import image_bytes
from uae_lightning.data.images import MAX_ASPECT, MIN_SIDE, read_picture
from uae_lightning.data.sources import Sample

SIGNATURES = {"jpg": rb"\xff\xd8\xff", "png": rb"\x89PNG\r\n\x1a\n", "webp": rb"RIFF....WEBP"}
HashOf = Callable[[Image.Image], int]  # 64 bits of an RGB picture
HARMLESS = {"grayscale", "palette", "color profile"}  # what every reader of pictures understands


@dataclass(frozen=True)
class Prepared:
    """A picture that can be captioned."""

    image: Image.Image  # RGB, scaled down for the model
    data: bytes  # the file as it was
    converted: tuple[str, ...]  # what `read_picture` had to do
    hash: int  # 64 bits, alike for pictures that look alike
    digest: int  # 64 bits of the file's


def prepare(sample: Sample, max_pixels: int, hash_of: HashOf) -> Prepared:
    """Raises BadFile as `read_picture` does."""
    data = image_bytes(sample)
    picture = read_picture(data, at_least=math.isqrt(max_pixels), min_side=MIN_SIDE, max_aspect=MAX_ASPECT)
    image = scaled_down(picture.image, max_pixels)
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return Prepared(image, data, picture.converted, hash_of(image), int.from_bytes(digest))


def scaled_down(image: Image.Image, max_pixels: int) -> Image.Image:
    """The same proportions, at most `max_pixels` in area."""
    scale = math.sqrt(max_pixels / (image.width * image.height))
    if scale >= 1:
        return image
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def file_to_keep(picture: Prepared) -> tuple[str, bytes, bool]:
    """(suffix, content, whether it was converted): the file as it was if any reader shows it as `read_picture` does.

    What is not (CMYK, 16 bits, animated, turned by EXIF, transparent, of another format) becomes upright RGB of 8 bits
    in its full size: a JPEG where it was one, as a photograph's PNG is many times as large, else a PNG.
    """
    suffix = next((name for name, start in SIGNATURES.items() if re.match(start, picture.data, re.DOTALL)), None)
    if suffix and HARMLESS.issuperset(picture.converted):
        return suffix, picture.data, False
    content = io.BytesIO()
    image = read_picture(picture.data).image
    if suffix == "jpg":
        image.save(content, "JPEG", quality=95, subsampling=0)
    else:
        image.save(content, "PNG")
    return ("jpg" if suffix == "jpg" else "png"), content.getvalue(), True
