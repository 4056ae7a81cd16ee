"""What measures an auto-encoder: suites, each of which gives a value per held-out item and figures of these values.

The same pictures, prompts, noise and seeds for any weights: two evaluations can be compared item by item.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.statistics import Figures, Items, Statistic
from uae_lightning.interfaces import Encoder
from uae_lightning.ranges import Count, checked
from uae_lightning.terminal.progress import Progress, watched
from uae_lightning.types import Batch, Captions, Sampling
from uae_lightning.usage import UsageError, closest


@dataclass(frozen=True)
class Row:
    """A figure as reports show it."""

    figure: str
    title: str


@dataclass(frozen=True)
class Group:
    """Rows that are drawn on one scale.

    Args:
        high: end of the scale, which begins at 0; None is what the rows need.
    """

    title: str
    text: str
    rows: tuple[Row, ...]
    high: float | None = 1.0


@dataclass(frozen=True)
class Link:
    """It loses what two figures differ in.

    Args:
        title: such as "caption".
        before: the figure without it; None is 1, the reward of the picture itself.
        after: the figure with it.
    """

    title: str
    before: str | None
    after: str


class Suite(nn.Module, ABC):
    """One measurement. Judges that it uses are its submodules: frozen, in eval mode.

    A subclass is listed in an evaluation's YAML by its class_path; nothing else needs to know it.
    """

    about: str  # one line for `uae evaluate --help` and for people who read figures
    of_tasks = False  # the lists are tasks; "overall" is the plain mean of theirs
    lower_is_better: tuple[str, ...] = ()  # beginnings of names
    neither: tuple[str, ...] = ()  # figures of which neither more nor less is better

    def missing(self, data: L.LightningDataModule) -> str | None:
        """Why this data cannot be measured; None: it can. Asked before anything is drawn: a suite whose files are not
        there, or not what they should be, raises a ValueError."""
        return None

    @abstractmethod
    def measure(self, subject: Subject) -> Items:
        """The values. A name with a slash belongs to a figure of several lists, see `statistics`."""

    def statistics(self, items: Items) -> dict[str, Statistic]:
        """Figure -> what it is made of: by default the mean of each list with at least two values."""
        lists = tuple(name for name, values in items.items() if "/" not in name and len(values) > 1)
        overall = {OVERALL: Statistic(lists, "tasks")} if self.of_tasks else {}
        return {name: Statistic((name,)) for name in lists} | overall

    def figures(self, items: Items) -> Figures:
        return {name: statistic.interval(items) for name, statistic in self.statistics(items).items()}

    def better(self, name: str) -> int:
        """1 where more of a figure is better, -1 where less is, 0 where neither."""
        return 0 if name.startswith(self.neither) else -1 if name.startswith(self.lower_is_better) else 1

    def judges(self) -> dict[str, nn.Module]:
        """Networks that judge, by name."""
        return dict(self.named_children())

    def instrument(self, name: str) -> str | None:
        """Which figure of a suite "instruments" says how often the judge of this figure is right."""
        return None

    def groups(self, figures: Figures) -> list[Group]:
        """What a report shows of the figures."""
        return [Group(self.about, "", tuple(Row(name, name.replace("_", " ")) for name in figures))]

    def links(self) -> list[Link]:
        """Of a chain whose links each lose something of a reward, in order; a report draws what each loses."""
        return []

    def train(self, mode: bool = True) -> Suite:
        """Stays in eval mode whatever the module around it does."""
        return super().train(False)


# ------------------------------------------------------------------------------------------------ what is measured


@dataclass(frozen=True)
class RoundTrip:
    """N held-out pictures, what the encoder said of them, and what the decoder drew from that."""

    originals: Tensor  # [N, 3, H, W] in [0, 1]
    captions: Captions
    reconstructions: Tensor  # [N, 3, H, W] in [0, 1]
    keys: list[str]


@dataclass
class Subject:
    """What suites measure, and on how much.

    Args:
        data: held-out pictures.
        samples: pictures that go through the round trip.
        drawings: pictures drawn from prompts.
        batch_size: of those.
        seed: of captions, noise and the order of prompts.
        make_reference: makes the encoder before RL, under which captions have a perplexity; None: there is none.
        suites: all of the evaluation, for one that judges the judges.
    """

    model: AutoEncoder
    data: L.LightningDataModule
    samples: int
    drawings: int
    batch_size: int = 32
    seed: int = 0
    make_reference: Callable[[], Encoder] | None = None
    suites: Mapping[str, Suite] = field(default_factory=dict)

    @functools.cached_property
    def reference(self) -> Encoder | None:
        return self.make_reference().to(self.model.device).eval() if self.make_reference else None

    @functools.cached_property
    def round_trip(self) -> RoundTrip:
        """The first pictures of the data through the model. Random numbers depend on seed and batch alone."""
        originals, captions, reconstructions, keys = [], [], [], []
        batches = self.held_out()
        for number, batch in enumerate(watched(batches, len(batches), "batch", "round trip")):
            if not batch.has_images:
                raise ValueError(
                    f"{type(self.data).__name__} has prompts, and the round trip begins with pictures: give `data` of "
                    "the evaluation pictures"
                )
            images = batch.images.to(self.model.device)
            said, drawn = self.model.reconstruct(images, seed=self.seed_of(number))
            originals.append(images)
            captions.append(said)
            reconstructions.append(drawn)
            keys += batch.keys
        return RoundTrip(torch.cat(originals), joined(captions), torch.cat(reconstructions), keys)

    def seed_of(self, number: int) -> int:
        """Of captions and noise of a batch."""
        return int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])

    def held_out(self) -> list[Batch]:
        """Batches with the first `samples` pictures.

        Raises:
            ValueError: the data has fewer pictures.
        """
        batches, left = [], self.samples
        for batch in self.data.val_dataloader():
            batches.append(Batch(batch.images[:left], batch.captions[:left], batch.keys[:left]))
            left -= len(batches[-1].keys)
            if left == 0:
                return batches
        found = self.samples - left
        raise ValueError(f"the data holds {found} held-out pictures, {self.samples} are asked for: lower --samples")


def joined(parts: Sequence[Captions]) -> Captions:
    length = max(part.tokens.shape[1] for part in parts)
    tokens, masks = (
        torch.cat([F.pad(getattr(part, name), (0, length - part.tokens.shape[1])) for part in parts])
        for name in ("tokens", "mask")
    )
    return Captions([text for part in parts for text in part.texts], tokens, masks)


# ------------------------------------------------------------------------------------------------ all suites


@checked
@dataclass
class Evaluation:
    """What to judge with.

    Args:
        data: held-out pictures, as many as `samples` asks for.
        suites: what is measured, by name.
        samples: pictures that go through the round trip.
        drawings: pictures drawn from prompts; where there are fewer prompts they come again, with other noise.
        batch_size: pictures drawn from prompts at a time.
        captioning: of all captions, temperature 0 for the most probable ones; None is the model's own, which are as
            random as those of training.
        sampling: of all pictures; None is the model's own.
    """

    data: L.LightningDataModule
    suites: dict[str, Suite]
    samples: Count = 96
    drawings: Count = 240
    batch_size: Count = 32
    captioning: Captioning | None = None
    sampling: Sampling | None = None

    def chosen(self, asked: Sequence[str] | None, without: Sequence[str] = ()) -> dict[str, Suite]:
        """The suites to measure, in their order: those asked for, or else all that can be; none of `without`.

        Raises:
            ValueError: one that was asked for does not exist or cannot be measured.
        """
        if unknown := sorted(set(asked or ()) - self.suites.keys()):
            near = closest(unknown[0], self.suites)
            raise UsageError(f"no suite {unknown[0]!r} in this evaluation{near} (suites: {', '.join(self.suites)})")
        chosen = {}
        for name, suite in self.suites.items():
            if (asked is not None and name not in asked) or name in without:
                continue
            if (reason := suite.missing(self.data)) is None:
                chosen[name] = suite
            elif asked is not None:
                raise ValueError(f"{name} cannot be measured, {reason}: leave it out of the suites")
            else:
                print(f"{name} is left out: {reason}")
        return chosen


@torch.no_grad()
def evaluate(
    model: AutoEncoder,
    evaluation: Evaluation,
    suites: Mapping[str, Suite] | None = None,
    *,
    seed: int = 0,
    make_reference: Callable[[], Encoder] | None = None,
) -> tuple[dict[str, Figures], dict[str, Items]]:
    """Figures with their intervals, and the values behind them, by suite.

    Args:
        suites: what to measure, some of `evaluation.suites`; None is all that can be.
        seed, make_reference: see `Subject`.
    """
    chosen = evaluation.chosen(None) if suites is None else suites
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in (model, *evaluation.suites.values()):
        module.to(device).eval()
    subject = Subject(
        model, evaluation.data, evaluation.samples, evaluation.drawings, evaluation.batch_size, seed,
        make_reference, evaluation.suites,
    )  # fmt: skip
    figures, items = dict[str, Figures](), dict[str, Items]()
    with (
        sampled_as(model, evaluation.sampling, evaluation.captioning),
        Progress(len(chosen), "suite", "evaluate") as bar,
    ):
        for name, suite in chosen.items():
            bar.set_description(f"evaluate: {name}", refresh=bar.terminal)
            items[name] = suite.measure(subject)
            figures[name] = suite.figures(items[name])
            if OVERALL in figures[name]:
                bar.set_postfix({name: figures[name][OVERALL]["mean"]})
            bar.update()
    return figures, items


@contextmanager
def sampled_as(model: AutoEncoder, sampling: Sampling | None, captioning: Captioning | None = None) -> Iterator[None]:
    before = model.sampling, model.captioning
    model.sampling, model.captioning = sampling or model.sampling, captioning or model.captioning
    try:
        yield
    finally:
        model.sampling, model.captioning = before


def described(suites: Mapping[str, Suite], figures: dict[str, Figures], items: dict[str, Items]) -> dict[str, Any]:
    """What reports and studies need to know of the suites without having them: plain values by suite."""
    return {
        name: {
            "statistics": {
                figure: {"lists": list(one.lists), "kind": one.kind, "better": suite.better(figure)}
                for figure, one in suite.statistics(items[name]).items()
            },
            "instruments": {figure: suite.instrument(figure) for figure in figures[name] if suite.instrument(figure)},
            "groups": [asdict(group) for group in suite.groups(figures[name])],
            "links": [asdict(link) for link in suite.links()],
        }
        for name, suite in suites.items()
    }
