"""What features know: a linear probe from their mean over a picture to facts of its scene (Harmon, arXiv 2503.21979).

N pictures   E width of a feature   V values of a fact
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from uae_lightning.evaluation.statistics import Items
from uae_lightning.evaluation.suite import Subject, Suite
from uae_lightning.ranges import Count, Positive, checked
from uae_lightning.scenes.perception import without_scenes
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, Scene

SOURCES = ("vision", "decoder", "latents")


def facts_of(scene: Scene, objects: int) -> dict[str, list[bool]]:
    """Fact -> which of its values hold; `objects` is the most that a scene has."""
    return {
        "background": [scene.background == name for name in BACKGROUNDS],
        "count": [len(scene.objects) == count for count in range(1, objects + 1)],
        "class": [any(item.name == name for item in scene.objects) for name in CLASSES],
        "color": [any(item.color == name for item in scene.objects) for name in COLORS],
    }


@checked
class Probe(Suite):
    """Ridge regression from mean features to each fact, learnt on pictures of the training split.

    Judged on held-out ones: SOURCE_FACT, for each scene the share of its values that are among the likeliest, as many
    as there are.

    Args:
        sources: "vision" for the encoder's `visual_features`, "decoder" for the decoder's `features`, "latents".
        pictures: to learn from.
        ridge: weight of the penalty, of features of unit variance, for each picture.

    Raises:
        ValueError: a source has another name, or (when it measures) the model has no such features.
    """

    about = "what a linear probe reads from features"

    def __init__(self, sources: list[str], pictures: Count = 1024, ridge: Positive = 0.01) -> None:
        super().__init__()
        if not sources or {*sources} - {*SOURCES}:
            raise ValueError(f"sources must be some of {', '.join(SOURCES)}, got {sources}")
        self.sources, self.pictures, self.ridge = sources, pictures, ridge

    def missing(self, data: L.LightningDataModule) -> str | None:
        return without_scenes(data)

    def measure(self, subject: Subject) -> Items:
        batches, left = [], self.pictures
        for batch in subject.data.train_dataloader():
            batches.append((batch.images[:left], batch.keys[:left]))
            left -= len(batches[-1][1])
            if left == 0:
                break
        learnt_from = self.described(subject, batches)
        judged_on = self.described(subject, [(batch.images, batch.keys) for batch in subject.held_out()])
        items = {}
        for source in self.sources:
            for fact, holds in learnt_from[1].items():
                found = ridge(learnt_from[0][source], holds, judged_on[0][source], self.ridge)
                items[f"{source}_{fact}"] = among_likeliest(found, judged_on[1][fact]).tolist()
        return items

    def described(
        self, subject: Subject, batches: Sequence[tuple[Tensor, list[str]]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean features [N, E] by source, and facts [N, V] by name."""
        features: dict[str, list[Tensor]] = {source: [] for source in self.sources}
        facts: dict[str, list[list[bool]]] = {}
        for images, keys in batches:
            for source in self.sources:
                found = features_of(subject, source, images.to(subject.model.device))
                features[source].append(found.mean(1).double().cpu())
            for key in keys:
                for fact, holds in facts_of(subject.data.scene(key), subject.data.max_objects).items():
                    facts.setdefault(fact, []).append(holds)
        return {s: torch.cat(parts) for s, parts in features.items()}, {f: torch.tensor(h) for f, h in facts.items()}


def features_of(subject: Subject, source: str, images: Tensor) -> Tensor:
    """[N, K, E] of pictures [N, 3, H, W]."""
    if source == "vision":
        return subject.model.reader.visual_features(images)
    latents = subject.model.decoder.encode_images(images)
    return latents.flatten(2).transpose(1, 2) if source == "latents" else subject.model.decoder.features(latents)


def ridge(features: Tensor, holds: Tensor, others: Tensor, weight: float) -> Tensor:
    """How much each value [V] is held to be true of `others` [M, E], learnt from features [N, E] and what holds [N, V]:
    [M, V] float64."""
    mean, spread = features.mean(0), features.std(0).clamp(min=1e-9)
    x, y = (features - mean) / spread, holds.double()
    gram = x.T @ x + weight * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return (others - mean) / spread @ torch.linalg.solve(gram, x.T @ (y - y.mean(0))) + y.mean(0)


def among_likeliest(found: Tensor, holds: Tensor) -> Tensor:
    """[M] share of the values that hold [M, V] which are among as many likeliest by `found` [M, V]."""
    ranks = found.argsort(1, descending=True).argsort(1)
    count = holds.sum(1)
    return ((ranks < count[:, None]) & holds).sum(1).double() / count
