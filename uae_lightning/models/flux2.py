"""FLUX.2 [klein] as the decoder: 4 billion weights, blocks of two streams and then of one, 16 pixels a token."""

from __future__ import annotations

from math import exp

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from uae_lightning.models.diffusers_decoder import DiffusersDecoder
from uae_lightning.models.schedules import DYNAMIC

FEW, MANY, LARGE = 10, 200, 4300  # steps, steps, tokens


class Flux2Decoder(DiffusersDecoder):
    """`Flux2Transformer2DModel` without the embedding of guidance; arguments as of `DiffusersDecoder`.

    `FLUX.2-klein-base-4B` is the model to train; `FLUX.2-klein-4B` is distilled to four steps without guidance. Their
    own text encoder is padded to 512 tokens, to which everything attends: mask_padding false does the same.
    """

    family, title = "flux2", "FLUX.2"
    kind, pipeline_class, obeyed = Flux2Transformer2DModel, "Flux2KleinPipeline", DYNAMIC
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    targets = (  # as diffusers' script for FLUX.2, and the projections of the text
        r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)"
        r"|single_transformer_blocks\.\d+\.attn\.to_out"
    )

    def prepare(self) -> None:
        if self.transformer.config.guidance_embeds:
            raise ValueError(
                f"{self.folder} takes guidance as a number (guidance_embeds), which is not computed here: take a "
                "FLUX.2 [klein]"
            )

    def shift(self, tokens: int, steps: int) -> float:
        config = self.scheduler.config
        return exp(empirical_mu(tokens, steps)) if config.use_dynamic_shifting else config.shift

    def predict(self, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        size = x.shape[2:]
        place = places(1, *size, 1, device=x.device)
        attended = None if mask is None else F.pad(mask, (0, len(place)), value=True)[:, None, None]
        velocity = self.transformer(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=states,
            timestep=sigma,
            img_ids=place,
            txt_ids=places(1, 1, 1, states.shape[1], device=x.device),
            joint_attention_kwargs={"attention_mask": attended},
        ).sample
        return velocity.transpose(1, 2).unflatten(2, size)


def places(*sizes: int, device: torch.device) -> Tensor:
    """[S, 4] of time, row, column and word, the last of which runs first."""
    axes = [torch.arange(size, device=device) for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 3)


def empirical_mu(tokens: int, steps: int) -> float:
    """The logarithm of the shift, by a fit of FLUX.2's authors (`compute_empirical_mu` of diffusers): a line in the
    tokens for 10 steps and one for 200, and between them a line in the steps."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > LARGE:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return many + (few - many) * (MANY - steps) / (MANY - FEW)
