import pytest
import torch

from uae_lightning.interfaces import Reward
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.unified_score import UnifiedScore
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.types import RewardInput, RewardOutput


class Constant(Reward):
    def __init__(self, value: float, **parts: float) -> None:
        super().__init__()
        self.value, self.parts = value, parts or {"constant": value}

    def forward(self, inputs: RewardInput) -> RewardOutput:
        ones = torch.ones(len(inputs.captions))
        return RewardOutput(self.value * ones, {name: value * ones for name, value in self.parts.items()})


def pair(a: float, b: float) -> RewardInput:
    return RewardInput(torch.full((2, 3, 8, 8), a), torch.full((2, 3, 8, 8), b), ["", ""])


def test_pixel_similarity_is_one_minus_the_mean_difference():
    # Red if 1 - becomes 1 +, or .abs() goes.
    for a, b, expected in ((0.3, 0.3, 1.0), (0.0, 1.0, 0.0), (1.0, 0.25, 0.25)):
        torch.testing.assert_close(PixelSimilarity()(pair(a, b)).total, torch.full((2,), expected))


def test_weighted_sum_and_its_parts():
    # Red if * becomes +, or len(output.parts) > 1 becomes > 2.
    rewards = {"pixels": PixelSimilarity(), "facts": Constant(0.5, color=0.25, size=0.75)}
    output = WeightedSum(rewards, {"pixels": 2.0, "facts": -1.0})(pair(0.0, 0.25))
    torch.testing.assert_close(output.total, torch.full((2,), 2 * 0.75 - 0.5))
    assert {name: value[0].item() for name, value in output.parts.items()} == {
        "pixels": 0.75,
        "facts": 0.5,
        "facts/color": 0.25,
        "facts/size": 0.75,
    }
    parts, weights = output.terms()  # red if the parts of parts are weighed as well, or nothing is
    assert weights == {"pixels": 2.0, "facts": -1.0} and list(parts) == ["pixels", "facts"]
    torch.testing.assert_close(sum(weights[name] * part for name, part in parts.items()), output.total)


def test_a_reward_as_terms():
    # red if `plus` forgets what the total was made of, or `each` the weights
    alone = RewardOutput(torch.tensor([1.0, 2.0]), {"a": torch.tensor([0.5, 0.5])})
    assert alone.terms()[1] == {"total": 1.0} and alone.terms()[0]["total"] is alone.total
    docked = alone.plus("cut", torch.tensor([0.0, 1.0]), -0.25)
    assert docked.total.tolist() == [1.0, 1.75] and docked.weights == {"total": 1.0, "cut": -0.25}
    parts, weights = docked.each(lambda values: 2 * values).terms()
    assert {name: values.tolist() for name, values in parts.items()} == {"total": [2.0, 4.0], "cut": [0.0, 2.0]}
    assert weights == docked.weights


def test_weighted_sum_wants_a_weight_for_every_reward():
    # Red if != becomes <.
    for weights in ({}, {"b": 1.0}, {"a": 1.0, "b": 1.0}):
        with pytest.raises(ValueError, match="rewards has \\['a'\\], weights has"):
            WeightedSum({"a": Constant(1.0)}, weights)
    with pytest.raises(ValueError, match="at least one"):
        WeightedSum({}, {})


def test_a_unified_score_is_the_mean_of_its_backbones():
    # red if .mean(0) becomes .mean(), or .sum(0)
    originals, other = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64)
    inputs = RewardInput(originals, other, [""] * 3)
    score = UnifiedScore({"pixels": PixelSimilarity(), "same": WeightedSum({"p": PixelSimilarity()}, {"p": 3.0})})
    output = score(inputs)
    torch.testing.assert_close(output.total, 2 * PixelSimilarity()(inputs).total)
    assert set(output.parts) == {"pixels", "same"}
    with pytest.raises(ValueError, match="backbones"):
        UnifiedScore({})
