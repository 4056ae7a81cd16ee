"""Pictures as a browser sends them: upright, bounded, and never a traceback."""

import base64
import io

import pytest
from PIL import Image

from uae_lightning.app import pictures
from uae_lightning.app.errors import in_words, without_paths
from uae_lightning.usage import UsageError


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_a_picture_of_a_phone_stands_upright():
    # red with `Image.open` in place of `read_picture`
    turned, file = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(file, format="JPEG", exif=turned)
    assert pictures.picture_in(url_of(file.getvalue(), "image/jpeg")).size == (20, 40)


def test_what_is_shown_can_be_dropped_again():
    # red with format="JPEG"
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    assert pictures.picture_in(pictures.data_url(picture)).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (None, "there is no picture yet"),
        ("", "there is no picture yet"),
        ("/etc/passwd", "this is no picture"),
        ("https://example.org/a.png", "this is no picture"),
        (url_of(b"hello", "text/plain"), "cannot be read as a picture .not a picture"),
        (url_of(b"\x89PNG\r\n\x1a\n"), "cannot be read as a picture"),
        (url_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps"), "not a picture"),
        ("data:image/png;base64,###", "arrived damaged"),
        (pictures.data_url(Image.new("RGB", (4, 4))), "too small"),
        (pictures.data_url(Image.new("1", (9, 900))), "too long and thin"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(url, words):
    # red with BadFile let through, or without the bounds
    with pytest.raises(UsageError, match=words):
        pictures.picture_in(url)


def test_large_files_and_bombs_are_refused_before_they_are_decoded(monkeypatch):
    # red with the bound behind b64decode, or without max_pixels
    with pytest.raises(UsageError, match="larger than 20 MB"):
        pictures.picture_in("data:image/png;base64," + "A" * (pictures.MOST_BYTES * 4 // 3 + 8))
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    with pytest.raises(UsageError, match="too many pixels"):
        pictures.picture_in(pictures.data_url(Image.new("RGB", (11, 11))))


def test_errors_name_no_place_of_this_machine(capsys):
    # red with `str(error)` in `in_words`, or the text of unexpected errors shown
    assert without_paths("/home/someone/runs/a/stage.json is damaged: see /etc") == "stage.json is damaged: see etc"
    assert without_paths("the file '~/x/y.png' and 3/4 of <b>") == "the file 'y.png' and 3/4 of <b>"
    assert in_words(FileNotFoundError(2, "No such file", "/home/someone/a.yaml")) == "a.yaml: No such file"
    assert "terminal" in in_words(KeyError("/home/someone")) and "KeyError" in capsys.readouterr().err
    assert "not enough memory" in in_words(MemoryError())
