"""Faults planted in photographs, of which no scene graph is known: a part is painted over, copied, moved or recolored.

A photograph is GRID x GRID tiles. The part is one of the half with more detail, where something is to be seen; what is
copied or moved goes to one of the other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from uae_lightning.evaluation.fault_costs import Faulty

GRID = 4


def photograph_cases(batches: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Faulty]]:
    """Photographs [N, 3, H, W] in [0, 1] and their faulty copies, batch by batch."""
    generator = torch.Generator().manual_seed(seed)
    for images in batches:
        of_each = [faulty(image, generator) for image in images]
        yield images, {kind: torch.stack([copies[kind] for copies in of_each]) for kind in of_each[0]}


def faulty(image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Copies of a photograph [3, H, W] with one fault each; a gray one cannot be recolored and stays as it is.

    Raises:
        ValueError: it has less than 2 pixels a tile.
    """
    part, place = chosen_tiles(image, generator)
    without = painted_over(image, part)
    recolored = image.clone()
    recolored[part] = image[part].roll(1, 0)
    return {
        "missing": without,
        "added": with_copy(image, image[part], place),
        "place": with_copy(without, image[part], place),
        "color": recolored,
    }


def chosen_tiles(image: Tensor, generator: torch.Generator) -> list[tuple]:
    """Slices of two tiles, one of the half with more detail and one of the other."""
    height, width = (side // GRID for side in image.shape[1:])
    if min(height, width) < 2:
        raise ValueError(f"pictures of {list(image.shape[1:])} pixels are too small to plant faults in")
    tiles = image[:, : GRID * height, : GRID * width].unflatten(2, (GRID, width)).unflatten(1, (GRID, height))
    detail = tiles.std((2, 4)).mean(0).flatten()  # [GRID^2]
    half = len(detail) // 2
    first, second = torch.randint(half, (2,), generator=generator).tolist()
    order = detail.argsort().tolist()
    return [
        (slice(None), slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        for row, column in (divmod(tile, GRID) for tile in (order[half + first], order[second]))
    ]


def painted_over(image: Tensor, part: tuple) -> Tensor:
    """The part becomes what its edges suggest: the mean of the linear transitions from side to side."""
    _, rows, columns = part
    above, below = _around(rows, image.shape[1])
    left, right = _around(columns, image.shape[2])
    down = torch.linspace(0, 1, rows.stop - rows.start).to(image).view(1, -1, 1)
    across = torch.linspace(0, 1, columns.stop - columns.start).to(image).view(1, 1, -1)
    vertical = torch.lerp(image[:, above, columns].unsqueeze(1), image[:, below, columns].unsqueeze(1), down)
    horizontal = torch.lerp(image[:, rows, left].unsqueeze(2), image[:, rows, right].unsqueeze(2), across)
    result = image.clone()
    result[part] = (vertical + horizontal) / 2
    return result


def _around(part: slice, size: int) -> tuple[int, int]:
    """The pixels before and behind a part; at the rim of the picture twice the other one."""
    before, behind = part.start - 1, part.stop
    return (before if before >= 0 else behind), (behind if behind < size else before)


def with_copy(image: Tensor, content: Tensor, place: tuple) -> Tensor:
    result = image.clone()
    result[place] = content
    return result
