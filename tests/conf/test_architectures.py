"""The configs of hub models that come with the package: they are known by their number of parameters."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import AutoModel, AutoModelForCausalLM, CLIPTextModelWithProjection
from transformers import InternVLForConditionalGeneration as InternVL
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen
from transformers import Qwen3_5ForConditionalGeneration as Qwen35
from transformers import Qwen3VLForConditionalGeneration as Qwen3

from uae_lightning.models.loading import load
from uae_lightning.paths import resolve

MEDIUM, LARGE = "stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large"

SANA, FLUX2 = "Efficient-Large-Model/Sana_1600M_512px_diffusers", "black-forest-labs/FLUX.2-klein-base-4B"
Z_IMAGE, QWEN_IMAGE = "Tongyi-MAI/Z-Image", "Qwen/Qwen-Image"


@pytest.mark.parametrize(
    ("name", "kind", "subfolder", "parameters"),
    [  # beside each: what its page on the hub, or its paper, says
        ("Qwen/Qwen2.5-VL-3B-Instruct", Qwen, "", 3_754_622_976),  # 3.75 B
        ("Qwen/Qwen2.5-VL-7B-Instruct", Qwen, "", 8_292_166_656),  # 8.29 B
        ("Qwen/Qwen3-VL-2B-Instruct", Qwen3, "", 2_127_532_032),  # 2.13 B
        ("Qwen/Qwen3-VL-4B-Instruct", Qwen3, "", 4_437_815_808),  # 4.438 B
        ("Qwen/Qwen3-VL-8B-Instruct", Qwen3, "", 8_767_123_696),  # 8.77 B
        ("Qwen/Qwen3.5-0.8B", Qwen35, "", 852_985_920),  # 0.9 B, without what predicts several tokens (mtp)
        ("Qwen/Qwen3.5-2B", Qwen35, "", 2_213_241_664),  # 2 B
        ("Qwen/Qwen3.5-4B", Qwen35, "", 4_539_265_536),  # 5 B
        ("OpenGVLab/InternVL3-2B-hf", InternVL, "", 2_088_957_440),  # 4.18 GB in bf16
        ("Qwen/Qwen2.5-3B-Instruct", AutoModelForCausalLM, "", 3_085_938_688),  # 3.09 B
        (MEDIUM, SD3Transformer2DModel, "transformer", 2_243_171_520 + 384 * 384 * 1536),  # 2.5 B
        (LARGE, SD3Transformer2DModel, "transformer", 8_056_627_520 + 192 * 192 * 2432),  # 8.1 B
        (SANA, diffusers.SanaTransformer2DModel, "transformer", 1_604_462_752),  # 1,604 M
        (SANA, diffusers.AutoencoderDC, "vae", 312_250_275),  # 312 M
        (FLUX2, diffusers.Flux2Transformer2DModel, "transformer", 3_875_544_576),  # 7.75 GB in bf16
        (FLUX2, diffusers.AutoencoderKLFlux2, "vae", 84_046_115),  # 84 M
        (Z_IMAGE, diffusers.ZImageTransformer2DModel, "transformer", 6_154_908_736),  # 6.15 B
        (Z_IMAGE, AutoencoderKL, "vae", 83_819_683),
        (QWEN_IMAGE, diffusers.QwenImageTransformer2DModel, "transformer", 20_430_401_088),  # 20.4 B
        (QWEN_IMAGE, diffusers.AutoencoderKLQwenImage, "vae", 126_892_531),  # 127 M
        (MEDIUM, AutoencoderKL, "vae", 83_819_683),  # 84 M
        (LARGE, AutoencoderKL, "vae", 83_819_683),
        (MEDIUM, CLIPTextModelWithProjection, "text_encoder", 123_650_304),  # 124 M
        (LARGE, CLIPTextModelWithProjection, "text_encoder_2", 694_659_840),  # 695 M
        ("openai/clip-vit-large-patch14", AutoModel, "", 427_616_513),  # 428 M
        ("yuvalkirstain/PickScore_v1", AutoModel, "", 986_109_441),  # 986 M
        ("facebook/dinov2-large", AutoModel, "", 304_368_640),  # 304 M
    ],
)
def test_number_of_parameters(name, kind, subfolder, parameters):
    """That of SD3 with its table of positions, a buffer."""
    # red with one layer more in any of the configs, `tie_word_embeddings` turned, or a dual attention
    # layer less, `pos_embed_max_size` of medium in large
    with torch.device("meta"):
        model = load(kind, resolve(name), torch.bfloat16, subfolder)
    table = model.pos_embed.pos_embed.numel() if kind is SD3Transformer2DModel else 0
    assert sum(parameter.numel() for parameter in model.parameters()) + table == parameters
