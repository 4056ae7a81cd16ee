"""Which link of the chain loses what: the caption, the drawing or the codec.

The same pictures come back by ways that leave a link out: a renderer without fault takes the place of the decoder, true
captions that of the encoder's, and the codec alone that of both. What two ways differ in is what the link costs.
"""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Link, Row, Subject, Suite, sampled_as
from uae_lightning.evaluation.unified_bench import scores
from uae_lightning.interfaces import Reward
from uae_lightning.scenes.captions import Facts, parse_caption, write_caption
from uae_lightning.scenes.perception import without_scenes
from uae_lightning.scenes.scene import BACKGROUNDS, COLORS, POSITIONS, SIZES, Scene, SceneObject, pictures
from uae_lightning.scenes.scene_facts import SceneFacts
from uae_lightning.types import Sampling

WAYS = {
    "rendered": "its captions, drawn without fault",
    "drawn": "its captions, drawn by the decoder",
    "true_captions": "complete true captions, drawn by the decoder",
    "true_captions_with_care": "the same with more steps and guidance",
    "codec": "the codec alone",
}


class Bottleneck(Suite):
    """Reward and facts of the held-out pictures by each of `WAYS`: WAY_reward and WAY_facts.

    Args:
        reward: that of training; it judges nothing here but where it is lost.
        with_care: how pictures are drawn "with more steps and guidance".
    """

    about = "which link loses the reward and the facts: caption, drawing or codec"

    def __init__(self, reward: Reward, with_care: Sampling = Sampling(8, 2.0)) -> None:  # noqa: B008
        super().__init__()
        self.reward, self.facts, self.with_care = reward, SceneFacts(), with_care

    def missing(self, data: L.LightningDataModule) -> str | None:
        return without_scenes(data)

    def measure(self, subject: Subject) -> Items:
        originals = subject.round_trip.originals
        return {
            f"{way}_{name}": scores(judge, originals, images).tolist()
            for way, images in self.ways(subject).items()
            for name, judge in (("reward", self.reward), ("facts", self.facts))
        }

    def ways(self, subject: Subject) -> dict[str, Tensor]:
        """Pictures [N, 3, H, W] of each way."""
        trip = subject.round_trip
        rngs = [np.random.default_rng([subject.seed, row]) for row in range(len(trip.keys))]
        imagined = [scene_of(parse_caption(text), rng) for text, rng in zip(trip.captions.texts, rngs, strict=True)]
        with sampled_as(subject.model, self.with_care):
            with_care = drawn_of_true_captions(subject)
        return {
            "rendered": pictures(imagined).to(trip.originals),
            "drawn": trip.reconstructions,
            "true_captions": drawn_of_true_captions(subject),
            "true_captions_with_care": with_care,
            "codec": through_codec(subject),
        }

    def judges(self) -> dict[str, nn.Module]:
        return {"facts": self.facts}

    def links(self) -> list[Link]:
        ways = ("codec", "true_captions", "drawn")
        names = [None, *(f"{way}_reward" for way in ways)]
        return [Link(title, *names[i : i + 2]) for i, title in enumerate(("codec", "drawing", "caption"))]

    def groups(self, figures: Figures) -> list[Group]:
        text = {"reward": "mean reward", "facts": "share of the facts of a picture that come back"}
        return [
            Group(f"Which link loses: {name}", text[name], tuple(Row(f"{way}_{name}", WAYS[way]) for way in WAYS))
            for name in text
        ]


def scene_of(facts: Facts, rng: np.random.Generator) -> Scene:
    """A scene with what a caption states; what it leaves open is drawn at random, relations included."""
    pick = lambda names: tuple(names)[rng.integers(len(names))]  # noqa: E731
    empty, objects = list(range(len(POSITIONS))), []
    for fact in sorted(facts.objects, key=lambda fact: fact.position is None)[: len(empty)]:
        told = POSITIONS.index(fact.position) if fact.position else None
        cell = told if told in empty else pick(empty)
        empty.remove(cell)
        objects.append(SceneObject(fact.name, fact.color or pick(COLORS), fact.size or pick(SIZES), cell))
    return Scene(facts.background or pick(BACKGROUNDS), tuple(sorted(objects, key=lambda item: item.cell)))


def drawn_of_true_captions(subject: Subject) -> Tensor:
    """[N, 3, H, W], from the noise of the round trip."""
    drawn = []
    for number, batch in enumerate(subject.held_out()):
        rng = np.random.default_rng([subject.seed, number])
        captions = [write_caption(subject.data.scene(key), rng) for key in batch.keys]
        drawn.append(subject.model.generate(captions, subject.seed_of(number)))
    return torch.cat(drawn)


@torch.no_grad()
def through_codec(subject: Subject) -> Tensor:
    """[N, 3, H, W], encoded and decoded."""
    decoder, device = subject.model.decoder, subject.model.device
    batches = (batch.images.to(device) for batch in subject.held_out())
    return torch.cat([decoder.decode_latents(decoder.encode_images(images)) for images in batches])
