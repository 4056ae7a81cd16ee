"""A folder as people have it: 50 pictures that are fine, and one of each kind that is not."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene

GOOD = 50
SIZE = (IMAGE_SIZE + 32, IMAGE_SIZE + 16)
SKIPPED = {"cut.png": "damaged", "zero.jpg": "empty file", "text.png": "not a picture", "bomb.png": "too many pixels"}
CONVERTED = {"CMYK", "16 or 32 bits", "grayscale", "first frame of an animation", "turned upright"}
OWN_CAPTIONS = {"empty": b" \n", "latin": "käse".encode("latin-1"), "long": b"red " * 10_000, "good": b"a red ball"}


def scene(index: int, split: str = "train") -> Image.Image:
    """Larger than any model here takes it."""
    return Image.fromarray(render(sample_scene(split, 0, index))).resize(SIZE, Image.Resampling.BICUBIC)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def save_photographs(folder: Path) -> None:
    """`photos`, some of them with bad captions, `held_out` with four others, and `own.tar` with captions of one's own.

    photos: 50 good ones, 4 to convert, 4 to skip, a copy, a held-out one, and a film that is no picture.
    """
    photos, held_out = folder / "photos", folder / "held_out"
    photos.mkdir()
    held_out.mkdir()
    for index in range(GOOD):
        (photos / f"{index:03d}.png").write_bytes(png(scene(index)))
    for index in range(4):
        (held_out / f"{index}.png").write_bytes(png(scene(index, "validation")))
    for index, caption in enumerate(OWN_CAPTIONS.values()):
        (photos / f"{index:03d}.txt").write_bytes(caption)
    (photos / "copy.png").write_bytes((photos / "007.png").read_bytes())
    (photos / "leaked.png").write_bytes((held_out / "0.png").read_bytes())
    save_bad(photos)
    save_convertible(photos)
    with tarfile.open(folder / "own.tar", "w") as tar:
        for index, (name, caption) in enumerate(OWN_CAPTIONS.items()):
            for suffix, content in (("png", png(scene(200 + index))), ("txt", caption)):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def save_bad(photos: Path) -> None:
    whole = (photos / "000.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "text.png").write_text("no picture")
    (photos / "film.mp4").write_bytes(b"\0")
    Image.new("L", (20_000, 10_000)).save(photos / "bomb.png")


def save_convertible(photos: Path) -> None:
    cmyk, sixteen, first, second, turned = (scene(100 + index) for index in range(5))
    cmyk.convert("CMYK").save(photos / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(sixteen.convert("L")).astype(np.uint16) * 257).save(photos / "sixteen.png")
    first.save(photos / "animated.webp", save_all=True, append_images=[second], lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(photos / "turned.jpg", exif=exif, quality=95)
