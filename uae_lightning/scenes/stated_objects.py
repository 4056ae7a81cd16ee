"""StatedObjects: is what the text says in the picture, and nothing else? A reward for pictures that follow their text.

PerceptualGrid compares with the original, and so it compares what a prompt leaves open as well: the background, a
color. This one reads the text alone, as GenEval does, of which it is the training's half: prompts of scenes.prompts
that are not held out, and a network of its own that judges nothing else.

N pictures, 9 cells in raster order
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from uae_lightning.paths import resolve
from uae_lightning.rewards.vision_features import FrozenReward
from uae_lightning.scenes.detector import NAMES, OF_A_CELL, SceneDetector
from uae_lightning.scenes.prompts import stated_objects
from uae_lightning.types import RewardInput, RewardOutput


class StatedObjects(FrozenReward):
    """Mean over the objects of the text and one item more. An object counts by the probability that it is in its cell
    as stated; the item more is the mean probability that the cells of which the text says nothing are empty. In [0, 1].

    What a text does not say of an object (color, size) does not count; relations and backgrounds do not either.

    Parts, each [N]: present (1 where the text states no object), empty (1 where it fills all cells).

    Args:
        path: folder of a SceneDetector, "shipped:NAME" or an ordinary path.
    """

    needs_originals = False

    def __init__(self, path: str | Path = "shipped:scenes/verifier") -> None:
        super().__init__()
        self.detector = SceneDetector.from_folder(resolve(path))
        self.freeze()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        logits = self.detector(inputs.reconstructions.to(self.detector.background.weight.dtype))
        stated = {kind: indices.to(logits[kind].device) for kind, indices in stated_facts(inputs.captions).items()}
        occupied, presence = stated["class"] >= 0, logits["presence"].float().sigmoid()  # [N, 9]
        as_stated = presence
        for kind, indices in stated.items():
            of_stated = logits[kind].float().softmax(-1).gather(2, indices.clamp(min=0)[..., None])[..., 0]
            as_stated = as_stated * torch.where(indices >= 0, of_stated, 1.0)
        empty = mean_among(1 - presence, ~occupied)
        total = ((as_stated * occupied).sum(1) + empty) / (occupied.sum(1) + 1)
        return RewardOutput(total, {"present": mean_among(as_stated, occupied), "empty": empty})


def stated_facts(texts: list[str]) -> dict[str, Tensor]:
    """class, color and size of the objects that texts put into cells: indices [N, 9], -1 where they do not say."""
    indices = {kind: torch.full((len(texts), 9), -1) for kind in OF_A_CELL}
    for row, text in enumerate(texts):
        for cell, item in stated_objects(text).items():
            for kind, name in zip(OF_A_CELL, (item.name, item.color, item.size), strict=True):
                indices[kind][row, cell] = -1 if name is None else NAMES[kind].index(name)
    return indices


def mean_among(values: Tensor, among: Tensor) -> Tensor:
    """[N, 9], [N, 9] bool -> [N]: the mean in the cells of `among`, 1 where there are none."""
    count = among.sum(1)
    return torch.where(count > 0, (values * among).sum(1) / count.clamp(min=1), 1.0)
