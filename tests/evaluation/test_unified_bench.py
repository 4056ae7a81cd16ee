from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml

from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.evaluation.unified_bench import UnifiedBench, floor, scores, unified_bench
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.clip_similarity import ClipSimilarity
from uae_lightning.rewards.dino_similarity import DinoSimilarity
from uae_lightning.rewards.pixel_similarity import Pixels
from uae_lightning.rewards.unified_score import UnifiedScore
from uae_lightning.scenes.instruments import fault_ranking
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.types import RewardOutput

# Share of scenes in which each backbone must notice a fault, with margin; measured on 64 scenes (pixels: at least 0.81,
# efficientnet_lite0: 0.84, scene_detector: 1.00). The CLIP is a bag of words: it does not see where objects stand.
LEAST = {"efficientnet_lite0": 0.75, "scenes_clip": 0.85, "scene_detector": 0.95, "pixels": 0.7}
BLIND = {"scenes_clip": {"moved", "swapped", "doubled"}}
SCORE = Path(__file__).parents[2] / "conf" / "scenes" / "unified_score.yaml"
DEFAULT = yaml.safe_load(SCORE.read_text())["init_args"]["backbones"]


def build(class_path: str, init_args: dict | None = None) -> Reward:
    module, name = class_path.rsplit(".", 1)
    return getattr(import_module(module), name)(**(init_args or {}))


@pytest.fixture(scope="module")
def backbones() -> dict[str, Reward]:
    return {name: build(**spec) for name, spec in DEFAULT.items()}


class Brightness(Reward):
    """Brightness of the reconstruction, for arithmetic that can be done in the head."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs):
        total = self.factor * inputs.reconstructions.mean((1, 2, 3))
        return RewardOutput(total, {"brightness": total})


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_values_are_in_the_order_of_the_pictures_and_overall_is_their_mean():
    # red if .mean(0) becomes .mean(1) or .sum(0), or anything is sorted
    values = unified_bench(flat(0, 0, 0), flat(0.5, 0.25, 1), {"a": Brightness(), "b": Brightness(0.5)})
    assert values == {"a": [0.5, 0.25, 1], "b": [0.25, 0.125, 0.5], "overall": [0.375, 0.1875, 0.75]}


def test_floor_is_each_original_against_the_next():
    # red if -1 becomes 0 (each against itself) or the roll is along another axis
    assert floor(flat(0.5, 0.25, 1), {"a": Brightness()})["a"] == [0.25, 1, 0.5]


def test_summary_has_an_interval_for_each_backbone_and_overall():
    # red if overall is the mean of means with n of something else
    values = {"a": [0.1, 0.3, 0.2], "b": [0.5, 0.6, 0.9], "overall": [0.3, 0.45, 0.55]}
    summary = UnifiedBench(UnifiedScore({"a": Brightness(), "b": Brightness()})).figures(values)
    assert summary.keys() == {"a", "b", "overall"}
    assert summary["b"] == mean_interval(values["b"])
    assert summary["overall"] == mean_interval(values["overall"])


def test_clear_errors():
    # red if `not backbones`, `OVERALL in backbones` or the comparison of lengths goes
    pair = flat(0, 1)
    for backbones in ({}, {"overall": Pixels()}):
        with pytest.raises(ValueError, match="backbones"):
            unified_bench(pair, pair, backbones)
    with pytest.raises(ValueError, match="2 originals but 1"):
        unified_bench(pair, pair[:1], {"a": Brightness()})


@pytest.mark.parametrize("name", DEFAULT)
def test_the_same_picture_scores_one_and_noise_costs(name, backbones):
    # red if a backbone's embedding is not of length 1, or - 0.5 of Pixels goes (unrelated pictures then score 0.8)
    originals = pictures([sample_scene("test", 5, index) for index in range(16)])
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    means = [scores(backbones[name], originals, originals + x * noise).mean() for x in (0, 0.1, 0.3)]
    assert means[0] == pytest.approx(1, abs=1e-5)
    assert means[0] > means[1] + 0.001 and means[1] > means[2] + 0.01
    assert torch.tensor(floor(originals, {name: backbones[name]})[name]).mean() < means[0] - 0.3


@pytest.mark.parametrize("name", DEFAULT)
def test_a_worn_picture_of_the_truth_beats_crisp_ones_with_a_planted_fault(name, backbones):
    # red if the dither or the reduction of PooledEfficientNet goes
    found = fault_ranking(backbones[name], count=24, seed=1)
    noticed = {kind: sum(found[kind]) / len(found[kind]) for kind in found if kind not in BLIND.get(name, ())}
    assert min(noticed.values()) >= LEAST[name], noticed


WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**WIDTH, "image_size": 32, "patch_size": 8}
TEXT = {**WIDTH, "vocab_size": 60, "eos_token_id": 59, "bos_token_id": 58, "pad_token_id": 57}
SQUARE = {"size": {"height": 32, "width": 32}}
HUB = {
    "clip": (ClipSimilarity, hf.CLIPModel, hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)),
    # SigLIP2 of fixed resolution comes as the classes of SigLIP
    "siglip2": (ClipSimilarity, hf.SiglipModel, hf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "dinov2": (DinoSimilarity, hf.Dinov2Model, hf.Dinov2Config(**VISION)),
    "dinov3": (DinoSimilarity, hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**VISION)),
}


def test_backbones_of_the_hub_judge_together(tmp_path):
    # red if a backbone's values are not on the CPU in one precision when they are averaged
    backbones = {}
    for name, (judge, model, config) in HUB.items():
        model(config).save_pretrained(tmp_path / name)
        hf.ViTImageProcessorPil(**SQUARE).save_pretrained(tmp_path / name)
        backbones[name] = judge(str(tmp_path / name))
    originals = pictures([sample_scene("test", 0, index) for index in range(3)])
    values = unified_bench(originals, originals.clone(), backbones)
    assert values.keys() == {*HUB, "overall"}
    assert all(of_pictures == pytest.approx([1.0] * 3, abs=1e-4) for of_pictures in values.values())
