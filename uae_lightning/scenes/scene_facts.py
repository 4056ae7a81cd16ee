"""SceneFacts: which facts of the scene survived, as the trained detector reads them. The judge of reports.

It reads the original with the same detector instead of asking for the scene graph, so it needs pictures alone, like
every other reward; where the detector misreads both pictures alike, that counts as agreement. Keep it out of training:
a judge that was the reward judges nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from uae_lightning.paths import resolve
from uae_lightning.rewards.vision_features import FrozenReward
from uae_lightning.scenes.detector import OF_A_CELL, SceneDetector
from uae_lightning.types import RewardInput, RewardOutput


class SceneFacts(FrozenReward):
    """Share of the original's facts that the detector finds again in the reconstruction, in [0, 1].

    The facts of a scene with n objects are 2 + 3n: its background; class, colour and size of each object at its place
    (lost where the reconstruction has nothing); and that nothing was added, which counts by the share of the empty
    cells that stay empty.

    Parts, each [N] in [0, 1]: background; class, color, size (share of the original's objects; 1 if it has none);
    presence (share of all nine cells that agree on being occupied).

    Args:
        path: folder of a SceneDetector, "shipped:NAME" or an ordinary path.
    """

    def __init__(self, path: str | Path = "shipped:scenes/detector") -> None:
        super().__init__()
        self.detector = SceneDetector.from_folder(resolve(path))
        self.freeze()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        a, b = self._read(inputs.originals), self._read(inputs.reconstructions)
        occupied, both = a["presence"], a["presence"] & b["presence"]  # [N, 9]
        background = (a["background"] == b["background"]).float()
        kept = {kind: both & (a[kind] == b[kind]) for kind in OF_A_CELL}
        stays_empty = _share(~b["presence"], ~occupied)

        right = background + stays_empty + sum(hits.sum(1) for hits in kept.values())
        total = right / (2 + len(OF_A_CELL) * occupied.sum(1))
        presence = (a["presence"] == b["presence"]).float().mean(1)
        shares = {kind: _share(hits, occupied) for kind, hits in kept.items()}
        return RewardOutput(total, {"background": background, **shares, "presence": presence})

    def _read(self, images: Tensor) -> dict[str, Tensor]:
        return self.detector.read(images.to(self.detector.background.weight.dtype))


def _share(hits: Tensor, among: Tensor) -> Tensor:
    """[N, 9] bool, [N, 9] bool -> [N]: of the cells in `among`, the share that is a hit; 1 where there are none."""
    count = among.sum(1)
    return torch.where(count > 0, (hits & among).sum(1) / count.clamp(min=1), 1.0)
