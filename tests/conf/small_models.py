"""Small models of the classes that conf/real names, random, in the layout in which the hub has the big ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from PIL import Image
from safetensors.torch import save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from uae_lightning.scenes.bootstrap.captioner import build_tokenizer

HIDDEN, TEXT, POOLED = 32, 24, 8  # widths: of the encoder, of the decoder's text stream, of each pooled embedding

SIGLIP = 24  # width of the features that an IP-Adapter looks at


def save_models(folder: Path) -> None:
    """`qwen`, `sd3`, `clip` and `dino` in `folder`."""
    torch.manual_seed(0)
    save_qwen(folder / "qwen")
    save_sd3(folder / "sd3")
    save_judges(folder)


def save_qwen(folder: Path) -> None:
    """Patches of 14 pixels merged 2 x 2, windowed attention, grouped queries, M-RoPE, tied embeddings: as the 3B."""
    tokenizer = build_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = hf.Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            bos_token_id=None, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=14, temporal_patch_size=2,
            spatial_merge_size=2, out_hidden_size=HIDDEN, window_size=112, fullatt_block_indexes=[1],
        ),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=14, temporal_patch_size=2, merge_size=2).save_pretrained(folder)


def save_sd3(folder: Path) -> None:
    """Patches of 2 x 2 latents of 16 channels, a block with dual attention and one without: as SD3.5-medium."""
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=32, pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    for parameter in transformer.parameters():  # SD3 starts some at zero, where nothing reaches the output
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 8, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=4,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}
    for number, activation in (("", "quick_gelu"), ("_2", "gelu")):
        vocabulary = {"!": 0, "!</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
        hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16).save_pretrained(
            folder / f"tokenizer{number}"
        )
        config = hf.CLIPTextConfig(
            vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, projection_dim=POOLED, hidden_act=activation, **special,
        )  # fmt: skip
        hf.CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{number}")


def save_judges(folder: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**size, "image_size": 28, "patch_size": 14}
    text = {**size, "vocab_size": 60, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 57}
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    clip.save_pretrained(folder / "clip")
    square = {"crop_size": {"height": 28, "width": 28}}
    hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, **square).save_pretrained(folder / "clip")
    vocabulary = {"!": 0, "!</w>": 1, "a</w>": 2, "<|startoftext|>": 58, "<|endoftext|>": 59}
    hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16, pad_token="!").save_pretrained(folder / "clip")
    hf.Dinov2Model(hf.Dinov2Config(**vision)).save_pretrained(folder / "dino")
    hf.BitImageProcessorPil(size={"shortest_edge": 32}, **square).save_pretrained(folder / "dino")


def save_ip_adapter(folder: Path, decoder: Path, *, published: bool = False) -> None:
    """An IP-Adapter for the SD3 in `decoder`, and `siglip`, whose features it looks at.

    Args:
        published: a pickle with InstantX's names of layers; else the safetensors of diffusers' names.
    """
    torch.manual_seed(7)
    size = {"hidden_size": SIGLIP, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 60, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 57}
    vision = {**size, "image_size": 28, "patch_size": 14}
    hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder / "siglip")
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder / "siglip")
    transformer = SD3Transformer2DModel.from_pretrained(decoder, subfolder="transformer")
    head = transformer.config.attention_head_dim
    width = transformer.config.num_attention_heads * head
    resampler = IPAdapterTimeImageProjection(SIGLIP, width, 64, heads=1, num_queries=4, timestep_in_dim=16)
    layers = [SD3IPAdapterJointAttnProcessor2_0(width, width, head, 64) for _ in transformer.attn_processors]
    for module in (resampler, *layers):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    state = resampler.state_dict()
    named = {instantx_name(name): value for name, value in state.items()} if published else state
    attention = {f"{n}.{name}": value for n, layer in enumerate(layers) for name, value in layer.state_dict().items()}
    if published:
        torch.save({"image_proj": named, "ip_adapter": attention}, folder / "ip-adapter.bin")
        return
    flat = {f"image_proj.{name}": value.contiguous() for name, value in named.items()}
    flat |= {f"ip_adapter.{name}": value for name, value in attention.items()}
    save_file(flat, folder / "ip-adapter.safetensors")


def instantx_name(name: str) -> str:
    """Of a tensor of the resampler, as InstantX has it: norms and attention, feed-forward and its norm, modulation."""
    for ours, theirs in {
        "ln0": "0.norm1", "ln1": "0.norm2", "attn.to_out.0": "0.to_out", "attn.": "0.", "adaln_norm": "1.0",
        "ff.net.0.proj": "1.1", "ff.net.2": "1.3", "adaln_proj": "2.1",
    }.items():  # fmt: skip
        name = re.sub(rf"^(layers\.\d+\.){re.escape(ours)}", rf"\g<1>{theirs}", name)
    return name


def save_pictures(folder: Path, count: int, seed: int) -> None:
    """Noise of several sizes, with captions."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        height, width = rng.integers(64, 96, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a large red ball in the center {index}")
