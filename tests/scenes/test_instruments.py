import torch

from uae_lightning.interfaces import Reward
from uae_lightning.rewards.pixel_similarity import Pixels
from uae_lightning.scenes import instruments as judges
from uae_lightning.scenes.faults import FAULTS
from uae_lightning.types import RewardOutput


class LikesItCrisp(Reward):
    """Sees nothing but noise: the worst judge there is."""

    def forward(self, inputs):
        noise = inputs.reconstructions.diff(dim=3).abs().mean((1, 2, 3))
        return RewardOutput(-noise, {"crisp": -noise})


class Blind(Reward):
    def forward(self, inputs):
        return RewardOutput(torch.zeros(len(inputs.captions)), {})


def test_a_judge_that_prefers_clean_pictures_is_found_out(monkeypatch):
    # red if the original itself stands in for the worn one, or the noise is left out of it
    monkeypatch.setattr(judges, "NOISE", 0.1)
    found = judges.fault_ranking(LikesItCrisp(), count=8)
    assert found.keys() == set(FAULTS)
    assert all(values == [0.0] * 8 for values in found.values())


def test_a_blind_judge_notices_nothing():
    # red if `>` becomes `>=`
    assert sum(sum(values) for values in judges.fault_ranking(Blind(), count=4).values()) == 0


def test_ranking_is_of_scores_and_the_same_again():
    # red if the two sides of `>` change places, the noise has no seed, or repeat_interleave becomes repeat
    found, values = judges.fault_ranking(Pixels(), count=8, seed=3), judges.fault_scores(Pixels(), count=8, seed=3)
    assert found == judges.fault_ranking(Pixels(), count=8, seed=3)
    assert values["background"] != judges.fault_scores(Pixels(), count=8, seed=4)["background"]
    assert min(values["same"]) > 0.9
    for kind in FAULTS:
        assert found[kind] == [float(a > b) for a, b in zip(values["same"], values[kind], strict=True)]


def test_worn_is_the_same_picture_but_not_crisp(images):
    # red if `2 * images - 1` or `/ 2 + 0.5` goes
    error = (judges.worn(images, 0) - images).square().mean().sqrt()
    assert judges.NOISE < error < 0.06
    assert not torch.equal(judges.worn(images, 0), judges.worn(images, 1))
