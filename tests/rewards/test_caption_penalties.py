import pytest
import torch

from uae_lightning.rewards.caption_penalties import OverlongPenalty, RepetitionPenalty
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.types import RewardInput


def of(texts: list[str]) -> RewardInput:
    pictures = torch.rand(len(texts), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return RewardInput(pictures, pictures, texts)


def test_long_captions_are_punished_on_a_straight_line():
    # red with + buffer for the limit, without the clamp at 0 or at 1, or with another sign
    lengths = [0, 1, 6, 7, 8, 10, 11, 50]
    output = OverlongPenalty(limit=10, buffer=4)(of(["a " * length for length in lengths]))
    # DAPO: 0 up to 10 - 4, (6 - length) / 4 up to 10, -1 beyond
    torch.testing.assert_close(output.total, torch.tensor([0, 0, 0, -0.25, -0.5, -1, -1, -1]))
    assert output.total.dtype == torch.float32 and list(output.parts) == ["overlong"]
    assert OverlongPenalty(4, 4)(of(["a", ""])).total.tolist() == [-0.25, 0]


def test_words_are_counted_in_any_language():
    # red if text.split() counts them
    assert OverlongPenalty(8, 8)(of(["一只红色的猫", "a red cat ."])).total.tolist() == [-0.75, -0.5]


def test_repetition_is_the_share_of_runs_that_came_before():
    # red with another sign, or without `size`
    texts = ["a red cat and a blue dog", "cat cat cat cat cat cat", "cat dog " * 3, "", "cat", "红猫" * 3]
    four, two = (RepetitionPenalty(*size)(of(texts)).total for size in ((), (2,)))
    # runs of 4 of 6 words: 3, of which cat cat cat cat stands there once, and cat dog cat dog comes again once
    torch.testing.assert_close(four, -torch.tensor([0, 2 / 3, 1 / 3, 0, 0, 1 / 3]))
    torch.testing.assert_close(two, -torch.tensor([0, 4 / 5, 3 / 5, 0, 0, 3 / 5]))


def test_penalties_join_a_reward_of_pictures():
    # red if the total of a penalty is not by picture
    parts = {"pixels": PixelSimilarity(), "long": OverlongPenalty(2, 2), "again": RepetitionPenalty(1)}
    output = WeightedSum(parts, {"pixels": 1.0, "long": 0.1, "again": 0.5})(of(["a cat", "cat cat cat cat", "a"]))
    torch.testing.assert_close(output.total, torch.tensor([1 - 0.1, 1 - 0.1 - 0.5 * 0.75, 1 - 0.05]))
    assert set(output.parts) == set(parts)


def test_a_buffer_beyond_the_limit_is_refused():
    # red with >= for >, or without @checked
    with pytest.raises(ValueError, match="buffer must not exceed limit, got 5 and 4 words"):
        OverlongPenalty(4, 5)
    with pytest.raises(ValueError, match="size must be a whole number from 1"):
        RepetitionPenalty(0)
