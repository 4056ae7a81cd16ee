import pytest
import torch

from uae_lightning.evaluation.fault_costs import costs_markdown, evenness, fault_costs
from uae_lightning.evaluation.photograph_faults import GRID, faulty, painted_over, photograph_cases
from uae_lightning.rewards.pixel_similarity import PixelSimilarity


def photograph(seed: int = 0, height: int = 40, width: int = 48) -> torch.Tensor:
    """[3, H, W]: noise on the left, hardly any on the right."""
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return torch.cat([noise[..., : width // 2], 0.5 + 0.01 * noise[..., width // 2 :]], -1)


def changed_tiles(image, other) -> set[tuple[int, int]]:
    height, width = (side // GRID for side in image.shape[1:])
    _, rows, columns = (image != other).nonzero().T.tolist()
    return {(row // height, column // width) for row, column in zip(rows, columns, strict=True)}


def test_each_fault_is_where_it_should_be():
    # red if part and place change places, the copy is made of the painted picture, or what is moved stays as well
    for seed in range(5):
        image = photograph(seed)
        found = faulty(image, torch.Generator().manual_seed(seed))
        tiles = {kind: changed_tiles(image, other) for kind, other in found.items()}
        (part,), (place,) = tiles["missing"], tiles["added"]
        assert part[1] < GRID // 2 <= place[1]  # a part with detail goes to a plain place
        assert tiles["place"] == {part, place} and tiles["color"] == {part}
        torch.testing.assert_close(found["color"].sum(0), image.sum(0))
        assert torch.equal((found["place"] - found["missing"] != 0).any(0), (found["added"] - image != 0).any(0))


@pytest.mark.parametrize("row", [0, 1, 3])
@pytest.mark.parametrize("column", [0, 2, 3])
def test_a_part_painted_over_goes_on_what_is_around_it(row, column):
    # red if a neighbor beyond the rim is taken, or `down` and `across` change places
    ramp = torch.linspace(0, 1, 40)[:, None] + torch.linspace(0, 0.5, 40)
    image = ramp.expand(3, 40, 40).clone()
    part = (slice(None), slice(10 * row, 10 * row + 10), slice(10 * column, 10 * column + 10))
    spoiled = image.clone()
    spoiled[part] = 9.0
    inside = 0 < row < 3 and 0 < column < 3
    torch.testing.assert_close(painted_over(spoiled, part), image, atol=0.05 if inside else 0.5, rtol=0)


def test_a_picture_too_small_is_refused():
    # red if the check goes: a tile of one pixel has no inside
    with pytest.raises(ValueError, match="too small"):
        faulty(torch.zeros(3, GRID, GRID), torch.Generator())


def test_costs_are_of_each_picture_in_order():
    # red if the true picture is not the first candidate, or batches are not put behind each other
    images = torch.stack([photograph(seed) for seed in range(3)])
    whole = fault_costs(PixelSimilarity(), photograph_cases([images]))
    parts = fault_costs(PixelSimilarity(), photograph_cases([images[:2], images[2:]]))
    assert whole == parts and set(whole) == {"missing", "added", "place", "color"}
    assert all(min(costs[1.0]) > min(costs[0.5]) > 0 for costs in whole.values())


def test_evenness_is_missing_over_added():
    # red if one of the two kinds of added objects is left out
    costs = {
        "missing": {1.0: [0.2], 0.5: [0.1]},
        "added copy": {1.0: [0.1], 0.5: [0.1]},
        "added": {1.0: [0.3], 0.5: [0.3]},
    }
    assert evenness(costs) == {1.0: pytest.approx(1.0), 0.5: pytest.approx(0.5)}
    assert costs_markdown(costs).splitlines()[-1] == "| missing : added | 1.00 | 0.50 |"
