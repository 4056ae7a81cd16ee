"""Small random models of the encoders' real classes, in the layout in which the hub has the big ones."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from uae_lightning.scenes.bootstrap.captioner import build_tokenizer

HIDDEN = 32
TEMPLATE = (  # as Qwen3-VL's: a turn of another role leaves no trace
    "{% for m in messages %}{% if m['role'] in ('system', 'user', 'assistant') %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = TEMPLATE.replace(  # as that of Qwen3.5-4B, which thinks unless told not to
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}",
)


def save_intern_vl(folder: Path) -> None:
    """Squares of 56 pixels in patches of 14, merged 2 x 2, and a Qwen2 with positions of one dimension."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<img>", "</img>", "<IMG_CONTEXT>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>")
    token = tokenizer.convert_tokens_to_ids
    config = hf.InternVLConfig(
        text_config=dict(
            model_type="qwen2", vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
            bos_token_id=None, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"),
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=[56, 56],
            patch_size=[14, 14],
        ),
        image_token_id=token("<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=True,
    )  # fmt: skip
    hf.InternVLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)


def save_qwen3_vl(folder: Path) -> None:
    """Patches of 16 pixels merged 2 x 2, two of three layers that speak to the decoder, interleaved M-RoPE."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    token = tokenizer.convert_tokens_to_ids
    config = hf.Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=3, head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 3, 3], "mrope_interleaved": True
            },
            bos_token_id=None, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=3, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=16, temporal_patch_size=2,
            spatial_merge_size=2, out_hidden_size=HIDDEN, num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
        ),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    hf.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=half, image_std=half
    )
    processor.save_pretrained(folder)


def save_janus(folder: Path, begins: bool = True) -> None:
    """Squares of 32 pixels in patches of 8, a Llama, and 16 codes for each of 4 x 4 places of 8 pixels.

    Args:
        begins: the tokenizer puts a token in front of every text, as Janus's does.
    """
    tokenizer = build_tokenizer()
    special = ["<begin_of_image>", "<end_of_image>", "<image_placeholder>", "<bos>"]
    tokenizer.add_tokens(special, special_tokens=True)
    token = tokenizer.convert_tokens_to_ids
    if begins:
        processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", token("<bos>"))])
        tokenizer.backend_tokenizer.post_processor = processor
    tokenizer.chat_template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image_placeholder>")
    width = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"), "bos_token_id": token("<bos>")}
    config = hf.JanusConfig(
        text_config=dict(
            model_type="llama", vocab_size=len(tokenizer), intermediate_size=64, num_key_value_heads=1,
            max_position_embeddings=512, **width, **ends,
        ),
        vision_config=hf.JanusVisionConfig(
            image_size=32, patch_size=8, mlp_ratio=2.0, projection_dim=HIDDEN, num_image_tokens=16, **width
        ),
        vq_config=hf.JanusVQVAEConfig(
            embed_dim=4, num_embeddings=16, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 1, 1],
            num_res_blocks=1, projection_dim=HIDDEN, image_token_embed_dim=HIDDEN,
        ),
        image_token_id=token("<image_placeholder>"), tie_word_embeddings=True,
    )  # fmt: skip
    model = hf.JanusForConditionalGeneration(config)
    for parameter in [*model.model.generation_head.parameters(), *model.model.generation_aligner.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)  # else all codes are as likely
    model.generation_config = hf.GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    JanusImageProcessorPil(size={"height": 32, "width": 32}, min_size=8).save_pretrained(folder)


def save_qwen3_5(folder: Path) -> None:
    """Three layers of linear attention and one of full attention, and the hub's names of what is not read (`mtp`)."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = THINKING
    token = tokenizer.convert_tokens_to_ids
    config = hf.Qwen3_5Config(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=4, head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
            linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
            initializer_range=0.2,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
                "partial_rotary_factor": 0.5,
            },
            bos_token_id=None, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=16, temporal_patch_size=2,
            spatial_merge_size=2, out_hidden_size=HIDDEN, num_position_embeddings=16,
        ),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    model = hf.Qwen3_5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data.fill_(-3)  # else states forget a prompt within some tokens, and tests see nothing of them
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=half, image_std=half
    )
    processor.save_pretrained(folder)
