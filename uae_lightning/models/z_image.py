"""Z-Image as the decoder: one stream of picture and text, 6 billion weights, 16 pixels a token."""

from __future__ import annotations

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from uae_lightning.models.diffusers_decoder import DiffusersDecoder
from uae_lightning.models.schedules import DYNAMIC


class ZImageDecoder(DiffusersDecoder):
    """`ZImageTransformer2DModel`; arguments as of `DiffusersDecoder`.

    It runs from 0 at noise to 1 at the picture and predicts x0 - noise, which is turned here. Texts come to it one by
    one, each filled up to a multiple of 32 by a learned token that is attended to: `mask_padding` is about padding of
    the batch. Its pipeline's guidance g is g + 1 here.
    """

    family, title = "z_image", "Z-Image"
    kind, pipeline_class, width, obeyed = ZImageTransformer2DModel, "ZImagePipeline", "cap_feat_dim", DYNAMIC
    block_lists = ("noise_refiner", "context_refiner", "layers")
    targets = r".*attention\.(to_q|to_k|to_v|to_out\.0)"  # diffusers' script for Z-Image

    @property
    def patch_size(self) -> int:
        return self.transformer.config.all_patch_size[0]

    @property
    def most_patches(self) -> int:
        return min(self.transformer.config.axes_lens[1:])

    def predict(self, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        padding = [0] * len(x) if mask is None else (~mask).sum(1).tolist()  # a plan, which has no values, sees none
        velocities = self.transformer(
            x=list(x.unsqueeze(2).unbind()),  # each of one frame
            t=1 - sigma,
            cap_feats=[text[: len(text) - more] for text, more in zip(states, padding, strict=True)],
            patch_size=self.patch_size,
        ).sample
        return -torch.stack(velocities).squeeze(2)
