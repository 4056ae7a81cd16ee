"""Attention backends of diffusers; joint attention of SD3 with what its processor lacks, a mask for text padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SD3Transformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor


def use_masked_attention(transformer: SD3Transformer2DModel, backend: str, *, masked: bool) -> None:
    """Gives every attention layer a `MaskedJointAttention` with that backend of diffusers.

    Raises:
        ValueError: as `use_backend`.
    """
    transformer.set_attn_processor(MaskedJointAttention())
    use_backend(transformer, backend, masked=masked)


def use_backend(transformer: ModelMixin, backend: str, *, masked: bool) -> None:
    """A backend of diffusers for every attention layer.

    Raises:
        ValueError: the backend is unknown, its package is not installed, or it takes no mask and one is needed.
    """
    if masked and "flash" in backend and "varlen" not in backend and backend != "_native_flash":
        raise ValueError(
            f"attention: {backend} takes no mask for text padding: choose flash_varlen, or set mask_padding: false"
        )
    if backend == "native":
        return
    try:
        transformer.set_attention_backend(backend)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"attention: {backend} cannot be used here: {error}") from error


class MaskedJointAttention:
    """Attention processor for `SD3Transformer2DModel`: text positions that are padding are attended to by nobody.

    Call the transformer with `joint_attention_kwargs={"text_mask": mask}`, mask [N, L] bool; None is no padding.
    """

    _attention_backend: AttentionBackendName | None = None  # set by diffusers; None is torch's own attention

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        visual: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # noqa: E731  [N, S, D] -> [N, heads, S, d]
        norm = lambda layer, x: x if layer is None else layer(x)  # noqa: E731
        pixels = hidden_states.shape[1]
        own = heads(attn.to_q(hidden_states)), heads(attn.to_k(hidden_states)), heads(attn.to_v(hidden_states))
        query, key, value = norm(attn.norm_q, own[0]), norm(attn.norm_k, own[1]), own[2]
        mask = None
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            query = torch.cat([query, norm(attn.norm_added_q, heads(attn.add_q_proj(text)))], dim=2)
            key = torch.cat([key, norm(attn.norm_added_k, heads(attn.add_k_proj(text)))], dim=2)
            value = torch.cat([value, heads(attn.add_v_proj(text))], dim=2)
            if text_mask is not None:
                mask = F.pad(text_mask, (pixels, 0), value=True)[:, None, None]
        out = self.attend(query, key, value, mask)
        if visual is not None and (more := self.beside(query[:, :, :pixels], own, visual)) is not None:
            out = torch.cat([out[:, :pixels] + more, out[:, pixels:]], 1)
        out = out.flatten(2)
        image_out = attn.to_out[1](attn.to_out[0](out[:, :pixels]))
        if encoder_hidden_states is None:
            return image_out
        text_out = out[:, pixels:]
        return image_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)

    def beside(self, query: Tensor, own: tuple[Tensor, Tensor, Tensor], visual: Any) -> Tensor | None:
        """[N, S, heads, d], added to what the picture's queries [N, heads, S, d] find in picture and text: of what the
        decoder hands on of visual features, where the layer looks at them (`models.visual_decoder`, `ip_adapter`).

        Args:
            own: the picture's queries, keys and values, not normalized.
        """
        return None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[N, heads, S, d] each -> [N, S, heads, d]."""
        dtype = query.dtype
        if query.requires_grad and query.is_cpu and dtype == torch.bfloat16:  # its backward pass is four times slower
            query, key, value = query.float(), key.float(), value.float()
        if self._attention_backend is None:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).to(dtype)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
