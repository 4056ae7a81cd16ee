"""Joint attention of SD3 with what diffusers' processor lacks: a mask for text padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskedJointAttention:
    """Attention processor for `SD3Transformer2DModel`: text positions that are padding are attended to by nobody.

    Call the transformer with `joint_attention_kwargs={"text_mask": mask}`, mask [N, L] bool.
    """

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # noqa: E731  [N, S, D] -> [N, heads, S, d]
        norm = lambda layer, x: x if layer is None else layer(x)  # noqa: E731
        pixels = hidden_states.shape[1]
        query = norm(attn.norm_q, heads(attn.to_q(hidden_states)))
        key = norm(attn.norm_k, heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        mask = None
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            query = torch.cat([query, norm(attn.norm_added_q, heads(attn.add_q_proj(text)))], dim=2)
            key = torch.cat([key, norm(attn.norm_added_k, heads(attn.add_k_proj(text)))], dim=2)
            value = torch.cat([value, heads(attn.add_v_proj(text))], dim=2)
            if text_mask is not None:
                mask = F.pad(text_mask, (pixels, 0), value=True)[:, None, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        image_out = attn.to_out[1](attn.to_out[0](out[:, :pixels]))
        if encoder_hidden_states is None:
            return image_out
        text_out = out[:, pixels:]
        return image_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)
