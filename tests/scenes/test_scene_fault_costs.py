import torch

from uae_lightning.evaluation.fault_costs import costs_markdown, evenness, fault_costs
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.scenes.fault_costs import KINDS, scene_cases
from uae_lightning.types import RewardInput, RewardOutput


class Distance(Reward):
    """Minus the mean difference of pixels: linear in the strength of a fault."""

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = -(inputs.originals - inputs.reconstructions).abs().mean((1, 2, 3))
        return RewardOutput(total, {"distance": total})


def test_a_linear_judge_takes_off_half_for_half_a_fault():
    # red if the true picture is not the first candidate, or the strengths change places
    costs = fault_costs(Distance(), scene_cases(20, batch=8))
    assert list(costs) == list(KINDS) and all(len(of_kind[1.0]) == 20 for of_kind in costs.values())
    for of_kind in costs.values():
        assert min(of_kind[1.0]) > 0
        torch.testing.assert_close(torch.tensor(of_kind[0.5]) * 2, torch.tensor(of_kind[1.0]), atol=1e-6, rtol=1e-4)
    assert "| missing : added |" in costs_markdown(costs)


def test_the_default_reward_is_even_handed_where_drawings_are_faint():
    # red if dither goes back to 0.05: half a missing object then costs half of half an added one
    assert all(0.8 < ratio < 1.3 for ratio in evenness(fault_costs(PerceptualGrid(), scene_cases(32))).values())
