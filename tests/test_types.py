"""The records that pass between parts."""

import torch

from uae_lightning.types import Conditioning


def conditioning(visual: bool = True) -> Conditioning:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    features = torch.arange(30.0).view(3, 2, 5) + 1
    return Conditioning(torch.randn(3, 4, 6), mask, features if visual else None)


def test_visual_features_go_with_their_rows():
    # red if any method forgets them, or repeats the block instead of each row
    given = conditioning()
    assert torch.equal(given[torch.tensor([2, 0])].visual, given.visual[[2, 0]])
    assert torch.equal(given[1:].visual, given.visual[1:])
    assert torch.equal(given.repeat(2).visual, given.visual[[0, 0, 1, 1, 2, 2]])
    assert torch.equal(given.cropped().visual, given.visual) and given.cropped().states.shape == (3, 3, 6)


def test_dropped_rows_have_neither_text_nor_visual_features():
    # red if `drop` leaves the features of a dropped row, or takes those of another
    given = conditioning()
    dropped = given.drop(torch.tensor([False, True, False]))
    assert not dropped.visual[1].any() and not dropped.states[1].any()
    assert dropped.mask[1].tolist() == [True, False, False, False]
    assert torch.equal(dropped.visual[[0, 2]], given.visual[[0, 2]])


def test_without_visual_features_there_are_none():
    # red if zeros are made up
    given = conditioning(visual=False)
    for found in (given[:1], given.repeat(2), given.cropped(), given.drop(torch.ones(3, dtype=torch.bool))):
        assert found.visual is None
