"""Qwen3.5 as the encoder: three of four layers of its text decoder are linear attention, a state in place of keys."""

from __future__ import annotations

from transformers import Qwen3_5ForConditionalGeneration

from uae_lightning.models.qwen3_vl import Qwen3VLEncoder
from uae_lightning.models.qwen_vl import QwenVLEncoder


class Qwen35Encoder(QwenVLEncoder):
    """`Qwen3_5ForConditionalGeneration` (0.8B to 27B); arguments as of `QwenVLEncoder`.

    Linear attention is a gated delta net (arXiv 2412.06464). A group's captions share its state after the prompt.
    Padding would change a state, so prompts of several lengths are padded on the left, where it is still zero. Adapters
    are on the projections of queries, keys, values, output gates and outputs, not on those of decay and of writing
    strength, which give a number per head. Without the packages flash-linear-attention and causal-conv1d transformers
    computes it in torch; with them it has not been run here.

    The chat template knows no turns of roles such as UAE's "generate": captions are read as a user's. It opens answers
    with thoughts unless it is told not to, as it is here.
    """

    kind, title, reading_role = Qwen3_5ForConditionalGeneration, "Qwen3.5", "user"
    chat_options = {"enable_thinking": False}
    text_linears = (
        r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|in_proj_qkv|in_proj_z|out_proj)"
    )
    by_place = Qwen3VLEncoder.by_place  # its tower has no windows either
