"""Latent codecs in the layout of diffusers: the VAE of Stable Diffusion, DC-AE, and the linear one of the scenes."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Literal

from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.interfaces import Codec
from uae_lightning.models.adapters import to_dtype
from uae_lightning.models.loading import load, read_object
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.paths import resolve

FILES = ["config.json", "diffusion_pytorch_model*"]  # that are wanted of a codec on the hub


class DiffusersCodec(Codec):
    """Latents = (encoded - shift) * scale, pictures in [-1, 1] on the model's side.

    Args:
        path: folder or hub id of the model.
        subfolder: of it that holds the model, such as "vae" in a pipeline of diffusers.
        dtype: of the weights, in which it computes.

    Raises:
        FileNotFoundError: `path` names no model that can be had.
        ValueError: it holds another kind of model, or damaged weights.
    """

    kind: type[ModelMixin]
    sliced = True  # one picture at a time: at 512 px each takes about a gigabyte

    def __init__(
        self,
        path: str,
        subfolder: str = "",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        folder = resolve(path, [*FILES, *(f"{subfolder}/{file}" for file in FILES if subfolder)])
        self.model = load(self.kind, folder, to_dtype(dtype), subfolder).requires_grad_(False)
        if self.sliced:
            self.model.enable_slicing()
        self.channels = self.model.config.latent_channels

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor: ...

    @property
    def shift(self) -> float:
        return self.model.config.shift_factor or 0.0

    @property
    def scale(self) -> float:
        return self.model.config.scaling_factor

    def encode(self, images: Tensor) -> Tensor:
        return (self._encode((2 * images - 1).to(self.model.dtype)).float() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents / self.scale + self.shift
        return (self._decode(latents.to(self.model.dtype)).float() / 2 + 0.5).clamp(0, 1)

    def pipeline_model(self) -> ModelMixin | None:
        """What a StableDiffusion3Pipeline holds of it; None: diffusers has no class for it."""
        raise ValueError(f"a StableDiffusion3Pipeline, which `uae export` writes, cannot hold {type(self).__name__}")

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {
            "VAE": type(self.model).__name__,
            "VAE weights": digest_of(self.model, adapters),
            "VAE dtype": dtypes(self.model, adapters),
            "VAE scaling": f"factor {self.scale}, shift {self.shift}",
        }

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class KLCodec(DiffusersCodec):
    """`AutoencoderKL`; latents are the mode of its distribution."""

    kind = AutoencoderKL

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.model.config.block_out_channels) - 1)

    def pipeline_model(self) -> ModelMixin:
        return self.model

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent_dist.mode()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


class DCCodec(DiffusersCodec):
    """`AutoencoderDC` (DC-AE, arXiv 2410.10733), deterministic and without a shift; 32 pixels a latent in Sana's."""

    kind, shift = AutoencoderDC, 0.0

    @property
    def downsampling(self) -> int:
        return self.model.spatial_compression_ratio

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


class LinearCodec(DiffusersCodec):
    """`PatchCodec`, principal components of patches."""

    kind, sliced = PatchCodec, False

    @property
    def downsampling(self) -> int:
        return self.model.config.patch_size

    def pipeline_model(self) -> None:
        return None

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


CODECS = {codec.kind.__name__: codec for codec in (KLCodec, DCCodec, LinearCodec)}


def codec_of(folder: Path, dtype: Literal["float32", "bfloat16", "float16"]) -> DiffusersCodec:
    """The codec in the folder `vae` beside a transformer, of the class that its config.json names.

    Raises:
        ValueError: that class is none of `CODECS`; and what `DiffusersCodec` raises.
    """
    try:
        name = read_object(folder / "vae" / "config.json")["_class_name"]
    except (OSError, KeyError):  # `load` says what is wrong
        name = KLCodec.kind.__name__
    if name not in CODECS:
        raise ValueError(
            f"{folder}/vae: class {name!r} is not one of {sorted(CODECS)}; another codec is given with "
            "model.autoencoder.decoder.codec"
        )
    return CODECS[name](str(folder), "vae", dtype)
