"""Picture files as people have them -> upright RGB of 8 bits: what is converted, what is refused, and why."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

SUFFIXES = frozenset("jpg jpeg jpe jfif png webp gif bmp tif tiff avif jp2 ppm pgm".split())
# Not all that Pillow knows: some of its readers, such as that of EPS, start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own line, from which it warns of decompression bombs
MAX_BYTES = 1 << 28
MIN_SIDE = 8  # pixels; of less, processors cannot tell rows, columns and channels apart
MAX_ASPECT = 50.0  # Qwen's processor refuses more than 200 and is useless long before
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION_TAG = 0x0112


class BadFile(ValueError):
    """A picture or caption that cannot be used. `reason` is one of few, to be counted; `detail` is about this file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Picture:
    image: Image.Image  # RGB
    converted: tuple[str, ...]  # what was done to make it upright RGB of 8 bits


def read_picture(
    source: bytes | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
    min_side: int = 1,
    max_aspect: float = float("inf"),
) -> Picture:
    """The picture in a file: its first frame, upright, in sRGB, transparency laid over white.

    Args:
        source: the file, or what is in it.
        max_pixels: larger pictures are refused before they are decoded.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size as long as both sides are at
            least this long; several times faster for large photographs.
        min_side: pictures with a shorter side are refused.
        max_aspect: pictures are refused whose longer side is more than so many times the shorter.

    Raises:
        BadFile: "missing file", "unreadable file", "not a file", "empty file", "too many bytes", "not a picture",
            "too many pixels", "too small", "too long and thin", "damaged" (truncated too), "unknown range of values".
    """
    image = _opened(source if isinstance(source, bytes) else read_file(source))
    short, long = sorted(image.size)
    if short * long > max_pixels:
        raise BadFile("too many pixels", f"{image.width} x {image.height}, the limit is {max_pixels:,}")
    if short < min_side:
        raise BadFile("too small", f"{image.width} x {image.height}, the limit is a side of {min_side}")
    if long > max_aspect * short:
        raise BadFile("too long and thin", f"{image.width} x {image.height}, the limit is {max_aspect:g} to 1")
    try:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        return _upright_rgb(image)
    except (BadFile, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error...
        raise BadFile("damaged", str(error)) from error


def read_file(path: Path) -> bytes:
    """Raises BadFile: "too many bytes", or as `opened`."""
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise BadFile("too many bytes", f"{size:,}, the limit is {MAX_BYTES:,}")
        return file.read()


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to read. Not a pipe or a device, which may never end.

    Raises:
        BadFile: "missing file", "unreadable file" or "not a file"; also for errors while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile("not a file", f"{path} is a folder, a pipe or a device")
        with path.open("rb") as file:
            yield file
    except BadFile:
        raise
    except FileNotFoundError as error:
        raise BadFile("missing file", str(path)) from error
    except (OSError, ValueError) as error:  # ValueError: of a path that can be none
        raise BadFile("unreadable file", str(error)) from error


def square(image: Image.Image, side: int, across: float = 0.5) -> Image.Image:
    """[side, side]: the shorter side scaled to `side`, antialiased, and the longer one cropped to it.

    `across` says which part is kept: 0 is left or top, 0.5 the middle. Cropping first is the same picture and, unlike
    scaling first, harmless where one side is a thousand times as long as the other.
    """
    return cropped(image, side, side, across)


def cropped(image: Image.Image, width: int, height: int, across: float = 0.5) -> Image.Image:
    """[height, width]: the largest part of that shape, scaled; `across` as in `square`."""
    wide = min(image.width, image.height * width / height)
    high = min(image.height, image.width * height / width)
    left, top = across * (image.width - wide), across * (image.height - high)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the picture in a file, which is not decoded; raises BadFile.

    Pillow finds the orientation of a PNG behind its pixels alone: it is taken for upright.
    """
    image = _opened(data)
    turned = image.format != "PNG" and _orientation(image) >= 5
    return image.size[::-1] if turned else image.size


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise BadFile("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadFile("not a picture", f"none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise BadFile("too many pixels", str(error)) from error
    except Exception as error:
        raise BadFile("damaged", str(error)) from error


def _upright_rgb(image: Image.Image) -> Picture:
    converted = []
    if image.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False):
        converted.append("first frame of an animation")
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
        converted.append("16 or 32 bits")
    if image.has_transparency_data:
        image = _over_white(image)
        converted.append("transparency over white")
    if image.mode != "RGB":
        converted.append({"P": "palette", "L": "grayscale", "1": "grayscale"}.get(image.mode, image.mode))
    image, managed = _in_srgb(image, profile)
    if managed:
        converted.append("color profile")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        converted.append("turned upright")
    return Picture(image, tuple(converted))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is no reason to lose the picture
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits, 32 bits or floats -> 8 bits; Pillow's own conversion cuts all above 255 to white."""
    values = np.asarray(image, dtype=np.float32)
    if image.mode == "F":
        values = values * (255 if values.max() <= 1 else 1)
    else:
        values = values / 257
    if not (values.min() >= 0 and values.max() <= 255):  # NaN too
        raise BadFile("unknown range of values", f"mode {image.mode}, {values.min()} to {values.max()} of 0 to 255")
    return Image.fromarray(values.round().astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """RGB, and whether the file's color profile took part; a profile that is broken or of another mode does not."""
    try:
        if profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, source, target, outputMode="RGB"), True
    except (ImageCms.PyCMSError, OSError, ValueError):
        pass
    return image.convert("RGB"), False


def as_tensor(picture: Image.Image, side: int) -> Tensor:
    """The central square, scaled: [3, side, side] in [0, 1]."""
    pixels = picture if picture.size == (side, side) else square(picture, side)
    return torch.from_numpy(np.asarray(pixels, dtype=np.float32) / 255).permute(2, 0, 1)


def as_picture(image: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] -> 8 bits."""
    return Image.fromarray((image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def open_pictures(paths: list[str | Path], side: int) -> Tensor:
    """The central squares of picture files, upright and in sRGB, scaled: [N, 3, side, side] in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: a ValueError that says why a file cannot be read as a picture.
    """
    return torch.stack([as_tensor(read_picture(Path(path)).image, side) for path in paths])
