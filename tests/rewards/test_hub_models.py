"""ClipSimilarity and DinoSimilarity against transformers used the plain way, on tiny random models in hub layout."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image

from uae_lightning.rewards.clip_similarity import ClipSimilarity
from uae_lightning.rewards.dino_similarity import DinoSimilarity
from uae_lightning.rewards.vision_features import Preprocessing
from uae_lightning.types import RewardInput

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**WIDTH, "image_size": 32, "patch_size": 8}
TEXT = {**WIDTH, "vocab_size": 60, "eos_token_id": 59, "bos_token_id": 58, "pad_token_id": 57}


def clip():
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


def clip_vision():
    return hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**VISION, projection_dim=16))


def siglip():
    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION))


def dinov2():
    return hf.Dinov2Model(hf.Dinov2Config(**VISION))


def dinov3():
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION))


CLIP_PROCESSOR = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}
WIDE = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}  # as DINOv2: resize wider, then crop

CASES = {
    "clip": (ClipSimilarity, clip, hf.CLIPImageProcessorPil(**CLIP_PROCESSOR)),
    "clip_vision": (ClipSimilarity, clip_vision, hf.CLIPImageProcessorPil(**CLIP_PROCESSOR)),
    "siglip": (ClipSimilarity, siglip, hf.SiglipImageProcessorPil(**SQUARE)),
    "dinov2": (DinoSimilarity, dinov2, hf.BitImageProcessorPil(**WIDE)),
    "dinov3": (DinoSimilarity, dinov3, hf.ViTImageProcessorPil(**SQUARE)),
}


def plain_features(model, pixels):
    """The embeddings as the documentation of each model computes them."""
    if isinstance(model, (hf.Dinov2Model, hf.DINOv3ViTModel)):
        return model(pixel_values=pixels).pooler_output
    if isinstance(model, hf.CLIPVisionModelWithProjection):
        return model(pixel_values=pixels).image_embeds
    return model.get_image_features(pixel_values=pixels).pooler_output


def with_large_weights(model):
    """Fresh weights are so small that all pictures look alike to the model."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def natural(seed, height=64, width=64):
    """[3, 3, H, W] smooth random pictures of 8-bit values."""
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).round() / 255


def as_pil(images):
    return [Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for image in images]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_image_processor_and_model_used_plainly(name, tmp_path):
    # Red if the mean is not subtracted, antialias=True becomes False, [:, 0] becomes [:, 1], image_embeds becomes
    # pooler_output for a CLIP vision tower, or `//` of the crop is off by a pixel.
    reward_class, make, processor = CASES[name]
    torch.manual_seed(0)
    model = with_large_weights(make())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    originals, reconstructions = natural(0), natural(1)
    a, b = (processor(as_pil(x), return_tensors="pt")["pixel_values"] for x in (originals, reconstructions))
    reward = reward_class(str(tmp_path), micro_batch=2)
    with torch.no_grad():
        expected = F.cosine_similarity(plain_features(model, a), plain_features(model, b))
        output = reward(RewardInput(originals, reconstructions, [""] * 3))
        same = reward(RewardInput(originals, originals, [""] * 3))
        reward.preprocess = torch.nn.Identity()
        prepared = reward(RewardInput(a, b, [""] * 3))

    torch.testing.assert_close(prepared.total, expected)
    torch.testing.assert_close(output.total, expected, atol=0.02, rtol=0)  # the processors round to 8 bits
    assert expected.std() > 0.05  # so that the line above says something
    torch.testing.assert_close(same.total, torch.ones(3))
    assert output.parts.keys() == {reward.name}
    assert not any(p.requires_grad for p in reward.parameters())


@pytest.mark.parametrize("height, width", [(64, 64), (48, 80), (90, 40), (20, 20)])
@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_preprocessing_equals_the_image_processor(name, height, width, tmp_path):
    # Red if `height <= width` is turned round, bicubic becomes bilinear, or overshoot is cut off once only (20 x 20).
    processor = CASES[name][2]
    processor.save_pretrained(tmp_path)
    images = natural(2, height, width)
    expected = processor(as_pil(images), return_tensors="pt")["pixel_values"]
    preprocess = Preprocessing.of(str(tmp_path))
    difference = (preprocess(images) - expected) * preprocess.image_std
    assert difference.abs().max() * 255 < 1.5  # levels: PIL rounds between its two passes, and after them
    assert difference.abs().mean() * 255 < 0.4


def test_preprocessing_reads_old_and_partial_files(tmp_path):
    # Red if isinstance(size, int) goes: old hub files have plain numbers. Red if the ValueError goes.
    config = {"size": 32, "crop_size": 24, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert Preprocessing(config)(natural(3, 40, 60)).shape == (3, 3, 24, 24)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    with pytest.raises(ValueError, match="image_mean"):
        Preprocessing.of(str(tmp_path))
    with pytest.raises(ValueError, match="resample"):
        Preprocessing({**config, "resample": 1})


@pytest.mark.parametrize("reward_class", [ClipSimilarity, DinoSimilarity])
def test_missing_weights_say_what_to_do(reward_class, tmp_path, monkeypatch):
    # Red if `except FileNotFoundError` goes.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"{reward_class.__name__}.*preprocessor_config"):
        reward_class(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="hf download no-such-owner/no-such-model"):
        reward_class("no-such-owner/no-such-model")
