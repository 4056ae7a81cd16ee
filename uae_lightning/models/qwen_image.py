"""Qwen-Image as the decoder: 20 billion weights, two streams throughout, 16 pixels a token."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from uae_lightning.models.diffusers_decoder import DiffusersDecoder
from uae_lightning.models.schedules import DYNAMIC
from uae_lightning.types import Conditioning


class QwenImageDecoder(DiffusersDecoder):
    """`QwenImageTransformer2DModel`; arguments as of `DiffusersDecoder`.

    As in its pipeline a guided velocity keeps, at each token, the norm of the conditional one.
    """

    family, title = "qwen_image", "Qwen-Image"
    kind, pipeline_class, obeyed = QwenImageTransformer2DModel, "QwenImagePipeline", DYNAMIC

    @property
    def targets(self) -> str:
        """Those of attention (Flow-GRPO code: the feed-forward layers, too), without what makes the text that leaves
        the last block: nobody reads it."""
        last = len(self.transformer.transformer_blocks) - 1
        through = rf"(?!transformer_blocks\.{last}\.).*attn\.(add_q_proj|to_add_out)"
        return rf".*attn\.(to_[qkv]|to_out\.0|add_[kv]_proj)|{through}"

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels // self.patch_size**2

    def predict(self, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        patches = F.pixel_unshuffle(x, self.patch_size)
        size = patches.shape[2:]
        velocity = self.transformer(
            hidden_states=patches.flatten(2).transpose(1, 2),
            encoder_hidden_states=states,
            encoder_hidden_states_mask=mask,
            timestep=sigma,
            img_shapes=[[(1, *size)]] * len(x),
        ).sample
        return F.pixel_shuffle(velocity.transpose(1, 2).unflatten(2, size), self.patch_size)

    def guided_velocity(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, unguided: Tensor | None, guidance: float
    ) -> Tensor:
        velocity = self.velocity(x, sigma.to(x).expand(len(x)), conditioning)
        if unguided is None:
            return velocity
        conditional, without = (F.pixel_unshuffle(v, self.patch_size) for v in (velocity, unguided))
        guided = without + guidance * (conditional - without)
        guided = guided * (conditional.norm(dim=1, keepdim=True) / guided.norm(dim=1, keepdim=True))
        return F.pixel_shuffle(guided, self.patch_size)
