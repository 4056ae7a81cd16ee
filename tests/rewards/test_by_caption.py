import torch

from callbacks.reward import evaluate
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.by_caption import ByCaption
from uae_lightning.types import RewardInput, RewardOutput


class Constant(Reward):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = torch.full((len(inputs.captions),), self.value)
        return RewardOutput(total, {"constant": total})


def test_each_caption_is_judged_by_its_own_reward_in_any_micro_batch():
    # red if the two change places, or `evaluate` gives a micro-batch the first rows of `given`
    reward, pictures = ByCaption(Constant(1.0), Constant(2.0)), torch.zeros(4, 3, 2, 2)
    given = torch.tensor([True, False, False, True])
    for micro_batch in (1, 2, 4):
        output = evaluate(reward, RewardInput(pictures, pictures, ["a"] * 4, given), micro_batch)
        assert output.total.tolist() == [2, 1, 1, 2]
        assert output.parts["written"].tolist() == [1] * 4 and output.parts["given"].tolist() == [2] * 4


def test_held_out_pictures_have_written_captions():
    # red if None counts as given, or `held_out` returns self
    reward, pictures = ByCaption(Constant(1.0), Constant(2.0)), torch.zeros(2, 3, 2, 2)
    assert evaluate(reward, RewardInput(pictures, pictures, ["a"] * 2), 2).total.tolist() == [1, 1]
    assert reward.held_out() is reward.written and reward.written.held_out() is reward.written
