"""Prompts -> pictures -> questions about them, answered by a vision-language model: what DPG-Bench, WISE, UniGenBench
and GenEval 2 have in common. Each is a `Benchmark` in a file of its own: which questions a prompt has, and what their
answers are worth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice

import lightning as L
from torch import Tensor

from uae_lightning.autoencoder import Captioning
from uae_lightning.evaluation.drawing import drawn
from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.judge_answers import Marks, ProbabilityOf, TextReading
from uae_lightning.evaluation.statistics import Figures, Items, Statistic
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite, sampled_as
from uae_lightning.refinement import Refinement
from uae_lightning.remote.pictures import as_png
from uae_lightning.rewards.openai_chat import OpenAIChat, Turn
from uae_lightning.types import Sampling

UNREAD = "unread"  # share of marks that no answer gave
MOST_UNREAD = 0.1  # more of them, and a figure is none


@dataclass(frozen=True)
class Request:
    """One thing that a judge is asked about a picture.

    Args:
        system, images_last: see `OpenAIChat`'s Turn.
    """

    text: str
    reading: TextReading | ProbabilityOf
    system: str = ""
    images_last: bool = False

    def about(self, image: str) -> Turn:
        return Turn(self.text, (image,), self.system, self.images_last)


@dataclass(frozen=True)
class Point:
    """What one mark is about.

    Args:
        kinds: lists that the mark goes to.
        parents: points of the same prompt, by their place, without which it does not count.
    """

    kinds: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt, what is asked about its picture, and the points of the marks that the answers give, in their order.

    Args:
        kinds: lists that the score of the whole picture goes to.
    """

    text: str
    requests: tuple[Request, ...]
    points: tuple[Point, ...]
    kinds: tuple[str, ...] = ()


class Benchmark(ABC):
    """Prompts of a file, and what marks make of a picture."""

    title: str
    drawings_each: int = 1  # pictures of a prompt, by the benchmark's own protocol

    @cached_property
    def prompts(self) -> list[JudgedPrompt]:
        """Read when they are first asked for: an evaluation may list benchmarks whose files are not there.

        Raises:
            UsageError: there is no such file, or it is not in the format.
        """
        return self.read()

    @abstractmethod
    def read(self) -> list[JudgedPrompt]: ...

    @abstractmethod
    def score(self, prompt: JudgedPrompt, marks: Marks) -> float:
        """Of a picture, in [0, 1]."""

    def values(self, prompt: JudgedPrompt, marks: Marks) -> Items:
        """What a picture adds to the lists: its score, and its marks by their kinds."""
        found: Items = defaultdict(list)
        for name in (OVERALL, *prompt.kinds):
            found[name].append(self.score(prompt, marks))
        for point, mark in zip(prompt.points, marks, strict=True):
            for kind in point.kinds:
                found[kind].append(mark)
        return found

    def statistics(self, items: Items) -> dict[str, Statistic]:
        """Figures that are not the mean of the list of their name."""
        return {}

    def groups(self, figures: Figures) -> list[Group]:
        names = sorted(name for name in figures if name not in (OVERALL, UNREAD))
        rows = (Row(OVERALL, "overall"), *(Row(name, name.replace("_", " ")) for name in names))
        return [Group(self.title, "by a vision-language model", tuple(row for row in rows if row.figure in figures))]


class JudgedPrompts(Suite):
    """What a vision-language model says of pictures drawn from a benchmark's prompts, with the benchmark's figures.

    Answers that are none to what was asked count as 0, and in the figure "unread"; where more than a tenth are, the
    evaluation ends.

    Args:
        benchmark: prompts with their questions.
        judge: who answers them. Published figures are by a judge each; another one's figures compare with each other.
        sampling: how pictures are drawn here; None is as everywhere in the evaluation.
        rewriting: how prompts are rewritten before they are drawn; the judge is asked about the prompt as it was. None:
            they are drawn as they are.
        refinement: of several drawings the best is judged. None: each is drawn once.

    Of each prompt as many pictures are drawn as the benchmark's protocol has, and no more than `drawings` of the
    evaluation in all; where there are fewer, they are of the first prompts.
    """

    about = "prompt -> picture: questions answered by a vision-language model"
    lower_is_better = (UNREAD,)

    def __init__(
        self,
        benchmark: Benchmark,
        judge: OpenAIChat,
        sampling: Sampling | None = None,
        rewriting: Captioning | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        super().__init__()
        self.benchmark, self.judge = benchmark, judge
        self.sampling, self.rewriting, self.refinement = sampling, rewriting, refinement
        if refinement is not None:
            refinement.check(originals=False)
            self.verifier = refinement.verifier

    def missing(self, data: L.LightningDataModule) -> str | None:
        self.judge.check()
        _ = self.benchmark.prompts  # its mistakes are told first
        return None

    def measure(self, subject: Subject) -> Items:
        prompts = self.benchmark.prompts
        count = min(len(prompts) * self.benchmark.drawings_each, subject.drawings)
        wanted = list(islice(cycle(prompts), count))
        texts, items, first = [prompt.text for prompt in wanted], defaultdict[str, list[float]](list), 0
        with sampled_as(subject.model, self.sampling):
            for images in drawn(
                subject.model, texts, subject.seed, subject.batch_size, self.rewriting, self.refinement
            ):
                for name, values in self.judged(wanted[first : first + len(images)], images).items():
                    items[name] += values
                check_read(items[UNREAD], self.judge, last=False)
                first += len(images)
        check_read(items[UNREAD], self.judge, last=True)
        return dict(items)

    def judged(self, prompts: Sequence[JudgedPrompt], images: Tensor) -> Items:
        """Lists of these pictures [N, 3, H, W]."""
        asked = [
            (row, request, request.about(image))
            for row, image in enumerate(map(as_png, images))
            for request in prompts[row].requests
        ]
        items, unread = defaultdict[str, list[float]](list), list[float]()
        marks = [list[float]() for _ in prompts]
        answers = ask(self.judge, [(request.reading, turn) for _, request, turn in asked])
        for (row, request, _), found in zip(asked, answers, strict=True):
            marks[row] += [0.0] * request.reading.count if found is None else found
            unread += [float(found is None)] * request.reading.count
        for prompt, of_prompt in zip(prompts, marks, strict=True):
            for name, values in self.benchmark.values(prompt, of_prompt).items():
                items[name] += values
        return {**items, UNREAD: unread}

    def statistics(self, items: Items) -> dict[str, Statistic]:
        return self.benchmark.statistics(items) | super().statistics(items)

    def groups(self, figures: Figures) -> list[Group]:
        return self.benchmark.groups(figures)


def ask(judge: OpenAIChat, asked: Sequence[tuple[TextReading | ProbabilityOf, Turn]]) -> list[Marks | None]:
    """The marks that each answer gives; None where it is none to what was asked."""
    found: dict[int, Marks | None] = {}
    of_words = {place: reading for place, (reading, _) in enumerate(asked) if isinstance(reading, ProbabilityOf)}
    of_texts = {place: reading for place, (reading, _) in enumerate(asked) if isinstance(reading, TextReading)}
    for place, words in zip(of_words, judge.first_words([asked[place][1] for place in of_words]), strict=True):
        found[place] = of_words[place].read(words)
    for place, text in zip(of_texts, judge.written([asked[place][1] for place in of_texts]), strict=True):
        found[place] = of_texts[place].read(text)
    return [found[place] for place in range(len(asked))]


def check_read(unread: Sequence[float], judge: OpenAIChat, *, last: bool) -> None:
    """Raises ValueError where too few answers could be read: all so far were none, or at the end a tenth."""
    share = sum(unread) / len(unread)
    if share == 1 or (last and share > MOST_UNREAD):
        raise ValueError(
            f"{judge.model} at {judge.endpoint.url} did not answer {share:.0%} of {len(unread)} questions as it was "
            "asked: raise `max_tokens` of the judge where answers are cut, turn thinking off with `more`, or take "
            "another model"
        )
