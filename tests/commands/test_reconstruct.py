import numpy as np
import pytest
from PIL import Image

from uae_lightning.commands import reconstruct
from uae_lightning.data.images import as_tensor
from uae_lightning.usage import UsageError


def test_pictures_are_read_as_they_are_seen(tmp_path):
    # red with `Image.open(path).convert("RGB")`: lying on its side, and all white
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=turned)
    assert reconstruct.open_picture(tmp_path / "turned.jpg").size == (10, 20)
    Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    assert reconstruct.open_picture(tmp_path / "deep.png").getpixel((0, 0)) == (100, 100, 100)


def test_a_picture_that_is_none_is_named(tmp_path):
    # red with BadFile let through
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    with pytest.raises(UsageError, match="half.png cannot be read as a picture .* name a PNG"):
        reconstruct.open_picture(tmp_path / "half.png")


def test_the_middle_at_the_decoders_size():
    # red with `square(picture, side, 0)`
    picture = Image.new("RGB", (60, 20), "black")
    picture.paste("white", (20, 0, 40, 20))
    assert as_tensor(picture, 20).min() == 1 and as_tensor(picture, 10).shape == (3, 10, 10)
