"""Does a picture's reconstruction find its source among others? A round trip that keeps what tells pictures apart does.

A cosine to the source says little by itself, since to many networks any two pictures are alike; a rank among N
originals needs no scale. It depends on N, which is therefore fixed.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.prepare.semantic_hash import SemanticHash, nearest
from uae_lightning.ranges import Count, Natural, checked
from uae_lightning.rewards.vision_features import EmbeddingSimilarity

MRR, HARD = "mrr_", "hard_"  # before the name of a backbone


@checked
class Retrieval(Suite):
    """By each backbone, of each reconstruction: 1 where its source is the nearest of the originals, else 0 (their mean
    is R@1, under the name of the backbone); and one over the rank of its source (`mrr_NAME`). Where it is asked for, 1
    where the source comes first among as many of the likest of more pictures (`hard_NAME`): those whose code of 64 bits
    by that backbone is nearest to the source's (`prepare.semantic_hash`).

    Args:
        backbones: by whose embeddings pictures are compared; a run's own reward is no judge.
        among: originals, the first of the held-out pictures. Where more pictures make the round trip, the first
            `among` of them are looked for.
        hard_from: held-out pictures that the likest are taken from, more than `among`; 0 is none.

    Raises:
        ValueError: there is no backbone, or there are no more pictures to choose from.
    """

    about = "whether a reconstruction finds its source among other pictures"

    def __init__(self, backbones: dict[str, EmbeddingSimilarity], among: Count = 192, hard_from: Natural = 0) -> None:
        super().__init__()
        if not backbones:
            raise ValueError("Retrieval needs at least one of `backbones`")
        if 0 < hard_from <= among:
            raise ValueError(f"hard_from must be more than `among` {among}, or 0, got {hard_from}")
        self.backbones, self.by_name = nn.ModuleDict(backbones), backbones
        self.among, self.hard_from = among, hard_from

    def measure(self, subject: Subject) -> Items:
        found = subject.round_trip.reconstructions[: self.among]
        originals = first_pictures(subject, max(self.among, self.hard_from))
        items = {}
        for name, backbone in self.by_name.items():
            of_originals, of_found = embed(backbone, originals), embed(backbone, found)
            ranks = ranks_of_sources(of_originals[: self.among], of_found)
            items[name] = (ranks == 1).double().tolist()
            items[MRR + name] = (1 / ranks.double()).tolist()
            if self.hard_from:
                items[HARD + name] = first_of_likest(of_originals, of_found, self.among - 1).double().tolist()
        return items

    def judges(self) -> dict[str, nn.Module]:
        return dict(self.backbones.items())

    def groups(self, figures: Figures) -> list[Group]:
        ways = {"": "R@1", MRR: "mean reciprocal rank", HARD: "R@1 among the likest"}
        rows = [Row(before + name, f"{way}, {name}") for name in self.backbones for before, way in ways.items()]
        text = f"is the source nearest to its reconstruction, of {self.among} pictures? By chance {1 / self.among:.3f}"
        return [Group("Retrieval", text, tuple(row for row in rows if row.figure in figures))]


def first_pictures(subject: Subject, count: int) -> Tensor:
    """[count, 3, H, W] of the held-out pictures, the same whatever goes through the round trip.

    Raises:
        ValueError: there are fewer.
    """
    found = subject.round_trip.originals[:count]
    if len(found) == count:
        return found
    batches, held = [], 0
    for batch in subject.data.val_dataloader():
        batches.append(batch.images)
        held += len(batch.images)
        if held >= count:
            return torch.cat(batches)[:count].to(found)
    raise ValueError(f"the data holds {held} held-out pictures, retrieval is among {count}: lower `among`")


def embed(backbone: EmbeddingSimilarity, images: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N, E] on the CPU, wherever the backbone is."""
    device = next(itertools.chain(backbone.parameters(), backbone.buffers()), images).device
    parts = images.to(device).split(backbone.micro_batch)
    return torch.cat([backbone.embed(part) for part in parts]).double().cpu()


def first_of_likest(originals: Tensor, reconstructions: Tensor, count: int) -> Tensor:
    """[M] bool, of original m for reconstruction m among the `count` others whose codes are nearest to its own."""
    codes = SemanticHash.fit(None, originals).codes(originals)
    others = torch.from_numpy(nearest(codes, count)[: len(reconstructions)])
    likeness = reconstructions @ originals.T
    return (likeness.gather(1, others) < likeness.diagonal()[:, None]).all(1)


def ranks_of_sources(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """[M] ranks, 1 is the best, of original m for reconstruction m; [N, E] and [M, E], M at most N.

    Of originals that are as near as the source all come before it: a network that sees no difference finds nothing.
    """
    likeness = reconstructions @ originals.T
    own = likeness.diagonal()[:, None]
    return (likeness >= own).sum(1)
