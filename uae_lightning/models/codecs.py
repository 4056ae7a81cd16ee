"""Latent codecs in the layout of diffusers: the VAEs of its decoders, DC-AE, and the linear one of the scenes."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.interfaces import Codec
from uae_lightning.models.adapters import to_dtype
from uae_lightning.models.loading import load
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.paths import resolve

FILES = ["config.json", "diffusion_pytorch_model*"]  # that are wanted of a codec on the hub
PACKED = 2  # latents of FLUX.2's VAE in each direction that make one


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

    @property
    def channels(self) -> int:
        return self.model.config.latent_channels

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor: ...

    @property
    def shift(self) -> float | Tensor:
        return self.model.config.shift_factor or 0.0

    @property
    def scale(self) -> float | Tensor:
        return self.model.config.scaling_factor

    @property
    def scaling(self) -> str:
        """In words."""
        return f"factor {self.scale}, shift {self.shift}"

    def encode(self, images: Tensor) -> Tensor:
        return (self._encode((2 * images - 1).to(self.model.dtype)).float() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents / self.scale + self.shift
        return (self._decode(latents.to(self.model.dtype)).float() / 2 + 0.5).clamp(0, 1)

    def pipeline_model(self) -> ModelMixin | None:
        """What a pipeline of diffusers holds of it; None: diffusers has no class for it."""
        return self.model

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {
            "VAE": type(self.model).__name__,
            "VAE weights": digest_of(self.model, adapters),
            "VAE dtype": dtypes(self.model, adapters),
            "VAE scaling": self.scaling,
        }

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class KLCodec(DiffusersCodec):
    """`AutoencoderKL`; latents are the mode of its distribution."""

    kind = AutoencoderKL

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.model.config.block_out_channels) - 1)

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


class Flux2Codec(DiffusersCodec):
    """`AutoencoderKLFlux2`; 2 x 2 of its latents make one here, and its batch norm's running statistics scale each
    channel. Latents are the mode of its distribution."""

    kind, scaling = AutoencoderKLFlux2, "by batch norm"

    @property
    def channels(self) -> int:
        return PACKED**2 * self.model.config.latent_channels

    @property
    def downsampling(self) -> int:
        return PACKED * 2 ** (len(self.model.config.block_out_channels) - 1)

    @property
    def shift(self) -> Tensor:
        return self.model.bn.running_mean.float().view(1, -1, 1, 1)

    @property
    def scale(self) -> Tensor:
        return (self.model.bn.running_var.float() + self.model.config.batch_norm_eps).rsqrt().view(1, -1, 1, 1)

    def _encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.model.encode(images).latent_dist.mode(), PACKED)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(F.pixel_shuffle(latents, PACKED)).sample


class QwenImageCodec(DiffusersCodec):
    """`AutoencoderKLQwenImage`, a codec of films that are one frame long, with a mean and a deviation for each channel.
    Latents are the mode of its distribution."""

    kind = AutoencoderKLQwenImage

    @property
    def channels(self) -> int:
        return self.model.config.z_dim

    @property
    def downsampling(self) -> int:
        return self.model.spatial_compression_ratio

    @property
    def shift(self) -> Tensor:
        return self._by_channel(self.model.config.latents_mean)

    @property
    def scale(self) -> Tensor:
        return 1 / self._by_channel(self.model.config.latents_std)

    @property
    def scaling(self) -> str:
        return f"means {self.model.config.latents_mean}, deviations {self.model.config.latents_std}"

    def _by_channel(self, values: list[float]) -> Tensor:
        return torch.tensor(values, device=self.model.device).view(1, -1, 1, 1)

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images.unsqueeze(2)).latent_dist.mode().squeeze(2)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents.unsqueeze(2)).sample.squeeze(2)


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


CODECS = {codec.kind.__name__: codec for codec in (KLCodec, DCCodec, Flux2Codec, QwenImageCodec, LinearCodec)}
