import numpy as np
import pytest
from PIL import Image

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.commands import reconstruct
from uae_lightning.data.images import as_tensor
from uae_lightning.refinement import Refinement
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError


def test_of_several_drawings_the_closest_is_kept(make_encoder, make_projector, make_decoder, images, capsys):
    # red if originals do not reach the verifier, or other captions are drawn than are returned
    parts = make_encoder(), make_projector(), make_decoder()
    model = AutoEncoder(*parts, captioning=Captioning(1.0, 8), sampling=Sampling(2)).eval()
    pictures = [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in images]
    originals, captions, plain = reconstruct.round_trip(model, pictures, 5)
    refinement = Refinement(PixelSimilarity(), candidates=4)
    _, again, best = reconstruct.round_trip(model, pictures, 5, refinement)
    assert again == captions
    error = lambda drawn: (drawn - originals).abs().mean((1, 2, 3))  # noqa: E731
    assert (error(best) <= error(plain)).all() and error(best).mean() < error(plain).mean()
    first, last = 1 - error(plain).mean(), 1 - error(best).mean()
    assert f"PixelSimilarity: {first:.4f} of the first drawing, {last:.4f} of the best" in capsys.readouterr().out


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
