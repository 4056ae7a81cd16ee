import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from uae_lightning.data.images import BadFile, read_picture, square
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene

SCENE = Image.fromarray(render(sample_scene("train", 0, 0)))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def huge_png(side: int) -> bytes:
    """A PNG whose header says side x side, without the pixels."""
    small = encoded(Image.new("1", (8, 8)))
    header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {})])
def test_an_ordinary_picture_comes_as_it_is(kind: str, options: dict):
    # red if transpose is done for orientation 1, or anything at all is done to RGB
    picture = read_picture(encoded(SCENE, kind, **options))
    assert difference(picture.image, SCENE) == 0 and picture.converted == ()


def test_cmyk_becomes_rgb():
    # red if the mode is left alone
    picture = read_picture(encoded(SCENE.convert("CMYK"), "JPEG", quality=95))
    assert picture.image.mode == "RGB" and difference(picture.image, SCENE) < 6 and picture.converted == ("CMYK",)


def test_sixteen_bits_are_scaled_not_cut():
    # red if 257 becomes 1, as in Pillow's own conversion
    gray = SCENE.convert("L")
    deep = Image.fromarray(np.asarray(gray, np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        picture = read_picture(encoded(deep, kind))
        assert difference(picture.image.convert("L"), gray) == 0 and "16 or 32 bits" in picture.converted


def test_floats_of_unknown_range_are_refused():
    # red if <= 255 becomes > 255
    unit = Image.fromarray(np.asarray(SCENE.convert("L"), np.float32) / 255)
    assert difference(read_picture(encoded(unit, "TIFF")).image, SCENE.convert("L").convert("RGB")) < 0.1
    wild = Image.fromarray(np.asarray(SCENE.convert("L"), np.float32) * 100)
    with pytest.raises(BadFile, match="unknown range of values"):
        read_picture(encoded(wild, "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str):
    # red if "white" becomes "black"
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 4, 8))
    picture = read_picture(encoded(image.convert(mode)))
    assert np.asarray(picture.image)[:, 4:].min() == 255 and np.asarray(picture.image)[0, 0].tolist() == [200] * 3
    assert picture.converted[0] == "transparency over white"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_kept(kind: str):
    # red if the picture is sought to frame 1
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = read_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.asarray(picture.image)[0, 0].tolist() == [255, 0, 0]
    assert picture.converted[0] == "first frame of an animation"


@pytest.mark.parametrize("orientation, turn", [(3, 180), (6, 90), (8, 270)])
def test_a_rotated_photograph_is_turned_upright(orientation: int, turn: int):
    # red if ROTATE_270 and ROTATE_90 are exchanged in UPRIGHT
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = SCENE.rotate(turn)  # counter-clockwise; a viewer that heeds 6 turns it clockwise by 90
    picture = read_picture(encoded(lying, "PNG", exif=exif))
    assert difference(picture.image, SCENE) == 0 and picture.converted == ("turned upright",)


def test_a_color_profile_is_applied():
    # red if the target is the source
    srgb = ImageCms.createProfile("sRGB")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # of another mode: not applicable
    for profile in (ImageCms.ImageCmsProfile(srgb).tobytes(), lab, b"broken"):
        picture = read_picture(encoded(SCENE, icc_profile=profile))
        assert difference(picture.image, SCENE) == 0 and picture.converted == ()
    dark = _gamma_profile(4.0)
    picture = read_picture(encoded(Image.new("RGB", (8, 8), (128,) * 3), icc_profile=dark))
    assert np.asarray(picture.image).max() < 90 and picture.converted == ("color profile",)


def _gamma_profile(gamma: float) -> bytes:
    """An sRGB profile whose curves are another power, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in (i for i in range(len(profile)) if profile[i : i + 4] == b"para"):
        kind = struct.unpack(">H", profile[at + 8 : at + 10])[0]
        assert kind == 3  # Y = (aX + b)^g above d, cX below
        values = (gamma, 1.0, 0.0, 0.0, 0.0)
        profile[at + 12 : at + 32] = b"".join(struct.pack(">i", round(value * 65536)) for value in values)
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "dark".encode("utf-16-be"))


BAD = {
    "empty file": b"",
    "not a picture": b"<html>404</html>" * 20,
    "damaged": encoded(SCENE)[:700],
    "too many pixels": huge_png(10_001),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_file_is_refused_for_its_reason(reason: str):
    # red if max_pixels is compared with the width alone, or truncated files are let through
    with pytest.raises(BadFile) as error:
        read_picture(BAD[reason])
    assert error.value.reason == reason


def test_truncated_jpeg_unreadable_and_missing_files(tmp_path: Path):
    # red if read_file catches no FileNotFoundError, or no other OSError
    whole = encoded(SCENE, "JPEG")
    for size, reason in ((len(whole) // 2, "damaged"), (2, "not a picture")):
        with pytest.raises(BadFile, match=reason):
            read_picture(whole[:size])
    with pytest.raises(BadFile, match="missing file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(BadFile, match="not a file"):
        read_picture(tmp_path)
    with pytest.raises(BadFile, match="unreadable file"):
        read_picture(tmp_path / "a\0b.png")


def test_formats_whose_readers_start_programs_are_refused():
    # red if `formats` is left out of Image.open
    with pytest.raises(BadFile, match="not a picture"):
        read_picture(encoded(SCENE, "EPS"))


def test_the_limit_on_pixels_is_the_callers():
    # red if > becomes >=
    data = encoded(SCENE)
    assert read_picture(data, max_pixels=IMAGE_SIZE**2).image.size == SCENE.size
    with pytest.raises(BadFile, match=f"{IMAGE_SIZE} x {IMAGE_SIZE}, the limit is {IMAGE_SIZE**2 - 1:,}"):
        read_picture(data, max_pixels=IMAGE_SIZE**2 - 1)


def test_a_large_jpeg_is_decoded_at_a_fraction():
    # red if draft is left out; or asked for less than `at_least`
    photo = encoded(SCENE.resize((1024, 768)), "JPEG", quality=95)
    picture = read_picture(photo, at_least=100).image
    assert picture.size == (256, 192)
    assert difference(square(picture, 64), square(SCENE.resize((1024, 768)), 64)) < 3


def test_the_square_is_the_middle_of_the_longer_side():
    # red if `across` is ignored, or min becomes max
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste("red", (32, 0, 64, 32))
    wide.paste("blue", (64, 0, 96, 32))
    colors = [np.asarray(square(wide, 16, across))[8, 8].tolist() for across in (0, 0.5, 1)]
    assert colors == [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    assert square(wide.transpose(Image.Transpose.ROTATE_90), 16, 1).getpixel((8, 8)) == (0, 0, 0)
    assert square(Image.new("RGB", (1, 50_000)), 64).size == (64, 64)


def test_scaling_down_is_antialiased():
    # red if BICUBIC becomes NEAREST
    lines = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (128, 64))).convert("RGB")
    values = np.asarray(square(lines, 16))
    assert abs(values.astype(float) - 127.5).max() < 30
