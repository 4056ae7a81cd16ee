"""All suites on one stage: the round trip they share, their figures, and the values behind these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uae_lightning.evaluation import geneval
from uae_lightning.evaluation.image_health import image_health, summarise_image_health
from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.evaluation.language import language, summarise_language
from uae_lightning.evaluation.object_detectors import ObjectDetector, SceneObjectDetector
from uae_lightning.evaluation.table import SUITES
from uae_lightning.evaluation.unified_bench import floor, summarise_unified, unified_bench
from uae_lightning.interfaces import Encoder, Reward
from uae_lightning.ranges import Count, checked
from uae_lightning.scenes import instruments as judges
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.perception import perception, summarise_perception
from uae_lightning.scenes.prompts import Prompt
from uae_lightning.scenes.questions import questions_accuracy, summarise_questions
from uae_lightning.scenes.scene import Scene, sample_scene
from uae_lightning.stages.common import Sampling, Stage
from uae_lightning.types import Batch, Captions

Items = dict[str, dict[str, list[float]]]  # suite -> name -> a value per item, in an order that no weights change
Figures = dict[str, Any]  # suite -> name -> interval, or another such dict

OF_THE_ROUND_TRIP = {"unified_bench", "perception", "language", "images"}
FAULTY_SCENES = 64  # on which a backbone is checked, with nine faults each


@checked
@dataclass
class Evaluation:
    """What to judge with.

    Args:
        data: held-out pictures, as many as `samples` asks for. Of `ScenesData` the scene graphs are known, too:
            `perception` and `instruments` need them.
        backbones: judges of the round trip by name; the mean over them is the unified score.
        detector: of the objects that prompts ask for; without one `geneval` is left out.
        prompts: GenEval's evaluation_metadata.jsonl; None are the held-out prompts of `data.prompts`.
        samples: pictures that go through the round trip.
        drawings: pictures drawn from prompts; where there are fewer prompts they come again, with other noise.
        batch_size: pictures drawn from prompts at a time.
        sampling: of all pictures; None is the stage's own.
        suites: what is measured where nobody asks for certain suites; None is all that data and judges allow.
    """

    data: L.LightningDataModule
    backbones: dict[str, Reward]
    detector: ObjectDetector | None = None
    prompts: str | None = None
    samples: Count = 96
    drawings: Count = 240
    batch_size: Count = 32
    sampling: Sampling | None = None
    suites: list[Literal[SUITES]] | None = None

    def missing(self) -> dict[str, str]:
        """Suites that cannot be measured, and why."""
        reasons = {} if self.detector else {"geneval": "there is no `detector`"}
        if not isinstance(self.data, ScenesData):
            reasons |= dict.fromkeys(("perception", "instruments"), "the data has no scene graphs, as ScenesData has")
        return reasons

    def chosen(self, asked: Sequence[str] | None) -> list[str]:
        """The suites to measure, in their order: those asked for, or else all that can be.

        Raises:
            ValueError: one that was asked for cannot be measured.
        """
        missing, asked = self.missing(), asked or self.suites
        for suite, reason in missing.items():
            if suite in (asked or ()):
                raise ValueError(f"{suite} cannot be measured, {reason}: leave it out of the suites")
            if asked is None:
                print(f"{suite} is left out: {reason}")
        return [suite for suite in SUITES if suite in (asked or set(SUITES) - set(missing))]

    def scenes(self, count: int) -> list[Scene]:
        """The graphs of the first pictures of ScenesData."""
        data = self.data
        return [
            sample_scene(data.split, data.validation_seed, index, max_objects=data.max_objects)
            for index in range(count)
        ]

    def wanted(self, seed: int) -> list[Prompt]:
        """A prompt for each drawing."""
        if self.prompts is None:
            return geneval.scene_prompts(self.drawings, seed)
        return list(islice(cycle(geneval.read_prompts(self.prompts)), self.drawings))


# ------------------------------------------------------------------------------------------------ the round trip


@dataclass(frozen=True)
class RoundTrip:
    """N held-out pictures, what the encoder said of them, and what the decoder drew from that."""

    originals: Tensor  # [N, 3, H, W] in [0, 1]
    captions: Captions
    reconstructions: Tensor  # [N, 3, H, W] in [0, 1]
    keys: list[str]


@torch.no_grad()
def round_trip(stage: Stage, evaluation: Evaluation, *, samples: int, seed: int) -> RoundTrip:
    """The first `samples` pictures of the data through the stage. Random numbers depend on seed and batch alone."""
    originals, captions, reconstructions, keys = [], [], [], []
    for number, batch in enumerate(held_out(evaluation.data, samples)):
        images, entropy = batch.images.to(stage.device), np.random.SeedSequence([seed, number])
        said, drawn = stage.reconstruct(images, seed=int(entropy.generate_state(1)[0]))
        originals.append(images)
        captions.append(said)
        reconstructions.append(drawn)
        keys += batch.keys
    return RoundTrip(torch.cat(originals), joined(captions), torch.cat(reconstructions), keys)


def held_out(data: L.LightningDataModule, samples: int) -> list[Batch]:
    """Batches with the first `samples` pictures.

    Raises:
        ValueError: the data has fewer pictures.
    """
    batches, left = [], samples
    for batch in data.val_dataloader():
        batches.append(Batch(batch.images[:left], batch.captions[:left], batch.keys[:left]))
        left -= len(batches[-1].keys)
        if left == 0:
            return batches
    raise ValueError(f"the data holds {samples - left} held-out pictures, {samples} are asked for: lower --samples")


def joined(parts: list[Captions]) -> Captions:
    length = max(part.tokens.shape[1] for part in parts)
    tokens, masks = (
        torch.cat([F.pad(getattr(part, name), (0, length - part.tokens.shape[1])) for part in parts])
        for name in ("tokens", "mask")
    )
    return Captions([text for part in parts for text in part.texts], tokens, masks)


# ------------------------------------------------------------------------------------------------ the suites


@torch.no_grad()
def evaluate(
    stage: Stage,
    evaluation: Evaluation,
    *,
    samples: int | None = None,
    seed: int = 0,
    suites: Sequence[str] | None = None,
    reference_encoder: Encoder | None = None,
) -> tuple[Figures, Items]:
    """Figures with their intervals, and the values behind them.

    Args:
        samples: pictures of the round trip; None is what `evaluation` says.
        seed: of captions, noise and the order of prompts.
        suites: what to measure; None is what `evaluation` says.
        reference_encoder: the encoder before RL, under which captions have a perplexity.

    Raises:
        ValueError: a suite needs what `evaluation` lacks.
    """
    chosen = evaluation.chosen(suites)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in filter(None, (stage, reference_encoder, evaluation.detector, *evaluation.backbones.values())):
        module.to(device).eval()
    figures, items, count = {}, {}, samples or evaluation.samples
    with sampled_as(stage, evaluation.sampling):
        trip = round_trip(stage, evaluation, samples=count, seed=seed) if OF_THE_ROUND_TRIP & set(chosen) else None
        for suite in chosen:
            if suite == "unified_bench":
                found = of_round_trip(trip, evaluation)
            elif suite == "geneval":
                found = of_prompts(stage, evaluation, seed)
            elif suite == "perception":
                found = of_captions(stage.encoder, trip, evaluation.scenes(count), seed)
            elif suite == "language":
                found = of_words(trip, reference_encoder)
            elif suite == "images":
                found = of_pictures(trip)
            else:
                found = of_judges(evaluation, seed)
            figures[suite] = found[0]
            items |= found[1]
    return figures, items


@contextmanager
def sampled_as(stage: Stage, sampling: Sampling | None) -> Iterator[None]:
    before, stage.sampling = stage.sampling, sampling or stage.sampling
    try:
        yield
    finally:
        stage.sampling = before


def of_round_trip(trip: RoundTrip, evaluation: Evaluation) -> tuple[Figures, Items]:
    values = unified_bench(trip.originals, trip.reconstructions, evaluation.backbones)
    return summarise_unified(values), {"unified_bench": values}


def of_prompts(stage: Stage, evaluation: Evaluation, seed: int) -> tuple[Figures, Items]:
    wanted = evaluation.wanted(seed)
    values = geneval.geneval(stage, wanted, evaluation.detector, seed=seed, batch=evaluation.batch_size)
    return geneval.summarise(values), {"geneval": values}


def of_captions(encoder: Encoder, trip: RoundTrip, scenes: list[Scene], seed: int) -> tuple[Figures, Items]:
    values = perception(trip.captions.texts, scenes)
    answers = questions_accuracy(encoder, trip.originals, scenes, seed=seed)
    figures = summarise_perception(values) | {"questions": summarise_questions(answers)}
    return figures, {"perception": values, "questions": answers}


def of_words(trip: RoundTrip, reference: Encoder | None) -> tuple[Figures, Items]:
    values = language(trip.captions, trip.originals, reference)
    return summarise_language(values, trip.captions.texts), {"language": values}


def of_pictures(trip: RoundTrip) -> tuple[Figures, Items]:
    values = image_health(trip.originals, trip.reconstructions)
    return summarise_image_health(values), {"images": values}


def of_judges(evaluation: Evaluation, seed: int) -> tuple[Figures, Items]:
    """How often the judges are right where the truth is known: on renderings, with and without a planted fault.

    geneval: the detector on prompts and scenes that fulfil them or not.
    parser: share of the facts it finds in captions that state all of them.
    backbones: how often a worn picture of the true scene scores above a crisp one with a wrong fact, by kind of fault.
    floor: no accuracy, but the score of unrelated pictures: where the scale of each backbone begins.
    """
    scenes = evaluation.scenes(evaluation.samples)
    captions = [write_caption(scene, np.random.default_rng([seed, row])) for row, scene in enumerate(scenes)]
    parsed = perception(captions, scenes)["overall"]
    figures: Figures = {"parser": mean_interval(parsed), "backbones": {}}
    items = {"parser": parsed}
    if isinstance(evaluation.detector, SceneObjectDetector):
        right = geneval.instrument_accuracy(evaluation.detector, evaluation.drawings, seed)
        figures["geneval"] = geneval.summarise(right)
        items |= {f"geneval/{task}": values for task, values in right.items()}
    for name, backbone in evaluation.backbones.items():
        ranked = judges.fault_ranking(backbone, count=FAULTY_SCENES, seed=seed)
        figures["backbones"][name] = geneval.summarise(ranked)
        items |= {f"backbones/{name}/{fault}": values for fault, values in ranked.items()}
    originals = torch.cat([batch.images for batch in held_out(evaluation.data, evaluation.samples)])
    unrelated = floor(originals, evaluation.backbones)
    figures["floor"] = summarise_unified(unrelated)
    return figures, {"instruments": items | {f"floor/{name}": values for name, values in unrelated.items()}}
