"""Levels of one network: what each compares, what it weighs, and that PerceptualGrid is one of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from uae_lightning.rewards.feature_maps import EfficientNetMaps, FeatureMaps, VisionTransformerMaps
from uae_lightning.rewards.layered_similarity import LayeredSimilarity, Level
from uae_lightning.rewards.perceptual_grid import PerceptualGrid, PooledEfficientNet
from uae_lightning.scenes.faults import with_fault
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.types import RewardInput


class Rows(FeatureMaps):
    """Three layers without a network: the picture, its square, and its mean color."""

    widths, places = [3, 3, 3], 2

    def forward(self, images):
        return [images - 0.5, images.square() - 0.5, F.adaptive_avg_pool2d(images, 2) - 0.5]


def inputs(count: int = 4) -> RewardInput:
    scenes = [pictures([sample_scene("test", seed, i) for i in range(count)]) for seed in (0, 1)]
    return RewardInput(*scenes, [""] * count)


def test_each_level_is_the_mean_cosine_of_its_layers_and_places():
    # red if levels are cut at the wrong width, a layer is taken twice, or the weights are left out
    levels = {"low": Level([0, 1], 0.25), "high": Level([-1], 2.0)}
    reward, pair = LayeredSimilarity(Rows(), levels, cells=2), inputs()
    output = reward(pair)
    each = []
    for a, b in zip(reward.network(pair.originals), reward.network(pair.reconstructions), strict=True):
        places = [F.adaptive_avg_pool2d(values, 2).flatten(2) for values in (a, b)]
        each.append(F.cosine_similarity(*places, dim=1).mean(1))
    torch.testing.assert_close(output.parts["low"], (each[0] + each[1]) / 2)
    torch.testing.assert_close(output.parts["high"], each[2])
    torch.testing.assert_close(output.total, 0.25 * output.parts["low"] + 2.0 * output.parts["high"])
    assert output.weights == {"low": 0.25, "high": 2.0} and list(output.parts) == ["low", "high"]


def grid_of_version_02(images: torch.Tensor, network, cells: int, side: int, detail: int, noise: torch.Tensor):
    """The arithmetic of PerceptualGrid before there were levels."""
    for size in (detail, side):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    vectors = []
    for features in network.feature_maps(images + noise):
        places = F.adaptive_avg_pool2d(features, cells).flatten(2)
        vectors.append(F.normalize(places, dim=1).flatten(1))
    return torch.cat(vectors, dim=1) / (len(vectors) * cells**2) ** 0.5


@pytest.mark.parametrize("cells", [1, 3])
def test_the_perceptual_grid_is_one_level_to_the_last_bit(cells):
    # red if a cosine is divided by another number, stages are in another order, or the head is left out
    reward, pair = PerceptualGrid(cells=cells), inputs(2)
    noise = 0.1 * torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = reward(pair)
        a, b = (
            grid_of_version_02(images, reward.network.network, cells, 96, 32, noise)
            for images in (pair.originals, pair.reconstructions)
        )
    assert torch.equal(output.total, (a * b).sum(-1)) and torch.equal(output.parts["perceptual_grid"], output.total)


def test_the_pooled_head_is_one_level_to_the_last_bit():
    # red if it is another layer's, or pooled by place
    reward, pair = PooledEfficientNet(), inputs(2)
    with torch.no_grad():
        heads = [reward.network(images)[-1].mean((2, 3)) for images in (pair.originals, pair.reconstructions)]
        output = reward(pair)
    a, b = (F.normalize(head, dim=-1) for head in heads)
    assert torch.equal(output.total, (a * b).sum(-1)) and list(output.parts) == ["efficientnet_lite0"]


def test_deep_layers_see_classes_and_shallow_ones_the_ground():
    # red if a level gets another's layers. Cost of a wrong class over that of a wrong background: .01 in stages 0 to 2,
    # .24 in 5 to 7 (ours, 24 scenes)
    levels = {"detail": Level([0, 1, 2]), "semantic": Level([5, 6, 7])}
    reward, rng = LayeredSimilarity(EfficientNetMaps(), levels), np.random.default_rng(0)
    scenes = [sample_scene("test", 0, i) for i in range(6)]
    originals, cost = pictures(scenes), {}
    for kind in ("class", "background"):
        faulty = pictures([with_fault(scene, kind, rng) for scene in scenes])
        with torch.no_grad():
            parts = reward(RewardInput(originals, faulty, [""] * 6)).parts
        cost[kind] = {name: (1 - parts[name]).mean() for name in levels}
    ratio = {name: cost["class"][name] / cost["background"][name] for name in levels}
    assert ratio["semantic"] > 5 * ratio["detail"] > 0, ratio


SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**SIZE, "image_size": 32, "patch_size": 8}
TEXT = {**SIZE, "vocab_size": 60, "eos_token_id": 59, "bos_token_id": 58, "pad_token_id": 57}
PROCESSOR = {"size": {"height": 32, "width": 32}}
MODELS = {  # and how many tokens stand before the patches
    "clip": (lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)), 1),
    "clip_vision": (lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**VISION, projection_dim=16)), 1),
    "siglip": (lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION)), 0),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**VISION)), 1),
    "dinov3": (lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION, num_register_tokens=4)), 1 + 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_the_vision_models_of_the_hub(name, tmp_path):
    # red if class or register tokens are taken for patches, rows for columns, or blocks are in another order
    torch.manual_seed(0)
    make, before = MODELS[name]
    model = make().eval()
    model.save_pretrained(tmp_path)
    hf.SiglipImageProcessorPil(**PROCESSOR).save_pretrained(tmp_path)
    maps, tower, seen = VisionTransformerMaps(str(tmp_path)), getattr(model, "vision_model", model), []
    blocks = max((m for m in tower.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output[0] if type(output) is tuple else output))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tower(pixel_values=maps.preprocess(images))
        found = maps(images)
    assert [tuple(layer.shape) for layer in found] == [(2, 32, 4, 4)] * 3 and maps.widths == [32] * 3
    assert maps.places == 4 and len(seen) == 2
    for layer, states in zip(found[1:], seen, strict=True):
        patches = states[:, before:]
        torch.testing.assert_close(layer[:, :, 1, 2], patches[:, 1 * 4 + 2])
    similarity = LayeredSimilarity(maps, {"low": Level([1]), "high": Level([-1], 0.5)}, cells=2)
    output = similarity(RewardInput(images, images, ["", ""]))
    torch.testing.assert_close(output.total, torch.full((2,), 1.5))
    assert not any(parameter.requires_grad for parameter in similarity.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": {}}, "at least one of `levels`"),
        ({"levels": {"low": Level([])}}, "levels.low.layers must name layers of the network, 0 to 2"),
        ({"levels": {"low": Level([0]), "high": Level([3])}}, r"levels.high.layers .*got \[3\]"),
        ({"levels": {"low": Level([-4])}}, "levels.low.layers"),
        ({"levels": {"low": Level([0])}, "cells": 3}, "cells must be at most 2"),
    ],
)
def test_levels_that_are_not_there(options, words):
    # red if `<` of either bound becomes `<=`, or the check of cells goes
    with pytest.raises(ValueError, match=words):
        LayeredSimilarity(Rows(), **({"cells": 2} | options))


def test_a_network_without_patches_is_refused(tmp_path):
    # red without the look at its config
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    hf.ResNetModel(config).save_pretrained(tmp_path)
    hf.SiglipImageProcessorPil(**PROCESSOR).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no vision transformer: its config.json has no patch_size"):
        VisionTransformerMaps(str(tmp_path))
