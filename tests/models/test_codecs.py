"""Latent codecs: which class is read, what it makes of pictures, and what fits which transformer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC

from uae_lightning.models.codec_folders import codec_of
from uae_lightning.models.codecs import DCCodec, LinearCodec
from uae_lightning.models.sd3 import SD3Decoder


@pytest.fixture(scope="module")
def dc_ae(tmp_path_factory) -> Path:
    """A pipeline's folder with a DC-AE of 8 channels, 4 px a latent, as `vae`."""
    folder = tmp_path_factory.mktemp("dc")
    torch.manual_seed(0)
    blocks = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (
        ("block_out_channels", (8, 8, 16)), ("layers_per_block", (1,) * 3), ("qkv_multiscales", ((),) * 3),
    )}  # fmt: skip
    model = AutoencoderDC(latent_channels=8, attention_head_dim=8, scaling_factor=0.5, **blocks)
    model.save_pretrained(folder / "vae")
    return folder


def test_dc_ae_is_scaled_and_not_shifted(dc_ae, images):
    # red with a shift, the scale upside down, or another number of blocks for the downsampling
    codec = codec_of(dc_ae, "float32")
    assert isinstance(codec, DCCodec) and codec.latent_shape(64, 64) == (8, 16, 16)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    with torch.no_grad():
        latents = codec.encode(images)
        assert latents.shape == (4, *codec.latent_shape(*images.shape[:1:-1]))
        torch.testing.assert_close(latents, codec.model.encode(2 * images - 1).latent * 0.5)
        wanted = (codec.model.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(codec.decode(latents), wanted)


def test_sd3_draws_on_another_codec_and_hands_it_on(parts_folder, dc_ae, images, tmp_path):
    # red if `codec` is not looked at, not saved in `vae`, or its downsampling is not
    decoder = SD3Decoder(str(parts_folder / "decoder"), resolution=24, codec=DCCodec(str(dc_ae), "vae"))
    assert decoder.latent_shape == (8, 6, 6)
    decoder.save(tmp_path)
    again = SD3Decoder(str(tmp_path), resolution=24)
    assert torch.equal(again.encode_images(images), decoder.encode_images(images))
    with pytest.raises(ValueError, match="resolution: sides must be multiples of 4, at most 24 px, got 64 x 64"):
        SD3Decoder(str(tmp_path), resolution=64)


def test_the_codec_stays_frozen(make_decoder):
    # red without the line on the codec in Decoder.adapt, or in a decoder that trains all of its modules
    for learning in ("all", None):
        decoder = make_decoder(learning)
        assert not any(parameter.requires_grad for parameter in decoder.codec.parameters())
    assert any(parameter.requires_grad for parameter in make_decoder("all").transformer.parameters())


def test_a_codec_of_other_channels_is_refused(parts_folder):
    # red without _check_codec: the first pass fails in a convolution
    codec = LinearCodec("shipped:scenes/decoder", "vae")
    with pytest.raises(ValueError, match=f"LinearCodec have {codec.channels} .* takes 8; .*decoder.codec another"):
        SD3Decoder(str(parts_folder / "decoder"), resolution=64, codec=codec)


def test_a_codec_of_an_unknown_class_is_refused(parts_folder, tmp_path):
    # red with the class of AutoencoderKL for every other
    shutil.copytree(parts_folder / "decoder" / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="class 'VQModel' is not one of .*AutoencoderDC.*decoder.codec"):
        codec_of(tmp_path, "float32")
