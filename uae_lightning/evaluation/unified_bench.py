"""Unified-Bench, protocol P1 (UAE, arXiv 2509.09666): picture -> caption -> picture, and how much of it came through.

For every vision backbone the cosine between a picture and its reconstruction; their mean is the unified score. With
real models the backbones are those of the hub: `ClipSimilarity` (CLIP, LongCLIP, SigLIP2), `DinoSimilarity` (DINOv2,
DINOv3). Those of the embedded default, in conf/scenes/unified_score.yaml, differ in what they were trained on: labels
of ImageNet, captions of scenes, facts of scenes, and nothing at all.

A cosine says little by itself: to some networks any two pictures are alike. `floor` measures that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.rewards.unified_score import UnifiedScore
from uae_lightning.types import RewardInput


class UnifiedBench(Suite):
    """Unified-Bench.

    Args:
        score: its backbones are the judges.
    """

    about = "picture -> caption -> picture: cosine to the source, by vision backbone"

    def __init__(self, score: UnifiedScore) -> None:
        super().__init__()
        self.backbones = score.backbones

    def measure(self, subject: Subject) -> Items:
        trip = subject.round_trip
        return unified_bench(trip.originals, trip.reconstructions, self.judges())

    def judges(self) -> dict[str, nn.Module]:
        return dict(self.backbones.items())

    def instrument(self, name: str) -> str:
        return f"backbones/{name}/{OVERALL}"

    def groups(self, figures: Figures) -> list[Group]:
        rows = (Row(OVERALL, "unified score"), *(Row(name, name) for name in self.backbones))
        return [Group("Round trip", "picture, caption, picture: cosine to the source", rows)]


@torch.no_grad()
def scores(judge: nn.Module, originals: Tensor, reconstructions: Tensor) -> Tensor:
    """[N, 3, H, W] twice -> [N] float64 on the CPU, wherever the judge (a Reward) and the pictures are."""
    device = next(itertools.chain(judge.parameters(), judge.buffers()), originals).device
    pairs = RewardInput(originals.to(device), reconstructions.to(device), [""] * len(originals))
    return judge(pairs).total.double().cpu()


def unified_bench(originals: Tensor, reconstructions: Tensor, backbones: Mapping[str, nn.Module]) -> Items:
    """Cosine of each reconstruction to its source: name of a backbone -> N values in the order of the pictures.

    "overall" is the mean over the backbones, picture by picture.

    Args:
        originals, reconstructions: [N, 3, H, W] in [0, 1].
        backbones: rewards, by name.

    Raises:
        ValueError: no backbone, one that is called "overall", or different numbers of pictures.
    """
    if not len(backbones) or OVERALL in backbones:
        raise ValueError(f"`backbones` needs at least one, and none called {OVERALL!r}: got {sorted(backbones)}")
    if len(originals) != len(reconstructions):
        raise ValueError(f"{len(originals)} originals but {len(reconstructions)} reconstructions: give one for each")
    cosines = {name: scores(backbone, originals, reconstructions) for name, backbone in backbones.items()}
    cosines[OVERALL] = torch.stack(list(cosines.values())).mean(0)
    return {name: values.tolist() for name, values in cosines.items()}


def floor(originals: Tensor, backbones: Mapping[str, nn.Module]) -> Items:
    """The same of unrelated pictures, each original against the next one: where the scale of each backbone begins."""
    return unified_bench(originals, originals.roll(-1, 0), backbones)
