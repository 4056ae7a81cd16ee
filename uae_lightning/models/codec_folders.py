"""From a folder to the codec that is in it, whatever its class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from uae_lightning.interfaces import Codec
from uae_lightning.models.codecs import CODECS, KLCodec
from uae_lightning.models.diffusion_codec import DiffusionCodec
from uae_lightning.models.loading import read_object


def codec_of(folder: Path, dtype: Literal["float32", "bfloat16", "float16"], place: str = "vae") -> Codec:
    """The codec in the folder `place` beside a transformer, of the class that its config.json names.

    Raises:
        ValueError: that class is none of `CODECS` and no DiffusionCodec; and what their constructors raise.
    """
    try:
        config = read_object(folder / place / "config.json")
        name = config["_class_name"]
    except (OSError, KeyError):  # `load` says what is wrong
        name = KLCodec.kind.__name__
    if name == DiffusionCodec.__name__:
        return DiffusionCodec(codec_of(folder, dtype, f"{place}/base"), str(folder), place, steps=config["steps"])
    if name not in CODECS:
        raise ValueError(
            f"{folder}/{place}: class {name!r} is not one of {sorted(CODECS)}; another codec is given with "
            "model.autoencoder.decoder.codec"
        )
    return CODECS[name](str(folder), place, dtype)
