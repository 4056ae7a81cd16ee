"""A linear latent codec: principal components of non-overlapping pixel patches, in files as diffusers writes its own.

The embedded default uses it because it needs no gradient training and a convolutional VAE is dear on a CPU.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional as F


class PatchCodec(ModelMixin, ConfigMixin):
    """Images [N, 3, H, W] in [-1, 1] <-> latents [N, latent_channels, H / patch_size, W / patch_size].

    Args:
        patch_size: side of a patch in pixels.
        latent_channels: principal components kept.
        whitening: 0 leaves the components' own scale, 1 gives each unit variance.
        scaling_factor, shift_factor: as in AutoencoderKL; `codecs.LinearCodec` applies them.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 8,
        latent_channels: int = 32,
        whitening: float = 0.5,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        size = 3 * patch_size**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(size)[:latent_channels])  # rows, orthonormal
        self.register_buffer("scale", torch.ones(latent_channels))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Principal components of the patches of images [N, 3, H, W] in [-1, 1]."""
        rows = F.unfold(images.double(), self.config.patch_size, stride=self.config.patch_size).transpose(1, 2)
        rows = rows.flatten(0, 1)
        self.mean.copy_(rows.mean(0))
        variance, vectors = torch.linalg.eigh(torch.cov(rows.T))
        keep = variance.argsort(descending=True)[: self.config.latent_channels]
        scale = variance[keep].clamp_min(1e-8) ** (-self.config.whitening / 2)
        # one common factor makes the mean standard deviation of the channels 1, as flow matching's noise has
        self.scale.copy_(scale / (scale * variance[keep].sqrt()).mean())
        self.components.copy_(vectors[:, keep].T)

    def encode(self, images: Tensor) -> Tensor:
        size = self.config.patch_size
        rows = F.unfold(images, size, stride=size) - self.mean[:, None]  # [N, 3 p p, patches]
        latents = (self.components @ rows) * self.scale[:, None]
        return latents.unflatten(2, (images.shape[2] // size, images.shape[3] // size))

    def decode(self, latents: Tensor) -> Tensor:
        size = self.config.patch_size
        rows = self.components.T @ (latents.flatten(2) / self.scale[:, None]) + self.mean[:, None]
        return F.fold(rows, (latents.shape[2] * size, latents.shape[3] * size), size, stride=size)
