"""What a visual channel beside the text is worth: the same captions and noise, drawn with other features each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.evaluation.unified_bench import scores
from uae_lightning.interfaces import Reward
from uae_lightning.types import Conditioning

WAYS = {
    "text": "text alone",
    "predicted": "text and predicted features",
    "true": "text and the picture's own features (the ceiling)",
    "another": "text and the features of another picture",
}


class VisualChannel(Suite):
    """Each judge of the round trip, by each of `WAYS`: WAY_JUDGE.

    "true" lets the picture pass beside the caption: it says what the channel could carry, and is no round trip.

    Args:
        judges_of: rewards, by name.
    """

    about = "text alone, and visual features beside it: predicted, true, of another picture"

    def __init__(self, judges_of: dict[str, Reward]) -> None:
        super().__init__()
        self.judges_of = nn.ModuleDict(judges_of)

    def measure(self, subject: Subject) -> Items:
        originals, drawn = subject.round_trip.originals, self.drawn(subject)
        return {
            f"{way}_{name}": scores(judge, originals, images).tolist()
            for way, images in drawn.items()
            for name, judge in self.judges_of.items()
        }

    def drawn(self, subject: Subject) -> dict[str, Tensor]:
        """Pictures [N, 3, H, W] of each way, from the captions and noise of the round trip."""
        model, texts = subject.model, subject.round_trip.captions.texts
        parts: dict[str, list[Tensor]] = {way: [] for way in WAYS}
        for number, batch in enumerate(subject.held_out()):
            read, texts = model.read(texts[: len(batch.keys)]), texts[len(batch.keys) :]
            noise = model.noise(len(batch.keys), subject.seed_of(number))
            true = model.visual_features(batch.images.to(model.device))
            for way, conditioning in ways(read, true):
                parts[way].append(model.draw(conditioning, noise))
        return {way: torch.cat(images) for way, images in parts.items()}

    def judges(self) -> dict[str, nn.Module]:
        return dict(self.judges_of.items())

    def groups(self, figures: Figures) -> list[Group]:
        return [
            Group(
                f"Visual channel: {name}", self.about, tuple(Row(f"{way}_{name}", text) for way, text in WAYS.items())
            )
            for name in self.judges_of
        ]


def ways(read: Conditioning, true: Tensor) -> Iterator[tuple[str, Conditioning]]:
    """The conditioning of each way, by what was read and the features [N, K, E] of the pictures."""
    features = {"text": None, "predicted": read.visual, "true": true, "another": true.roll(1, 0)}
    return ((way, replace(read, visual=features[way])) for way in WAYS)
