"""SANA (arXiv 2410.10629) as the decoder: linear attention on the latents of DC-AE, 32 pixels of which are a token."""

from __future__ import annotations

from diffusers import SanaTransformer2DModel
from torch import Tensor

from uae_lightning.models.diffusers_decoder import DiffusersDecoder


class SanaDecoder(DiffusersDecoder):
    """`SanaTransformer2DModel`; arguments as of `DiffusersDecoder`.

    Its flow is that of SD3: it predicts noise - x0 at 1000 sigma. A picture of 512 px is 256 tokens, a quarter of those
    of SD3.5. The layers know no place of a token: convolutions in the feed-forward layers do.
    """

    family, title = "sana", "SANA"
    kind, pipeline_class, spacing, width = SanaTransformer2DModel, "SanaPipeline", "sd3", "caption_channels"
    targets = r".*attn[12]\.(to_q|to_k|to_v|to_out\.0)"  # diffusers' script for SANA: to_q, to_k, to_v

    def use_attention(self, backend: str, *, masked: bool) -> None:
        if backend != "native":
            raise ValueError(f"attention: {backend} cannot be used by SANA, whose layers are its own: set it to native")

    def predict(self, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        config = self.transformer.config
        return self.transformer(
            hidden_states=x,
            timestep=sigma * self.scheduler.config.num_train_timesteps * config.timestep_scale,
            encoder_hidden_states=states,
            encoder_attention_mask=None if mask is None else mask.to(x.dtype),
        ).sample
