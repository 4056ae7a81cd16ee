"""What is made of a judge's answer: marks, or nothing where it is not what was asked for."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from uae_lightning.rewards.openai_chat import Words

Marks = list[float]
LIST = re.compile(r"\[\s*-?\d+(?:\s*,\s*-?\d+)*\s*,?\s*\]")  # of whole numbers


class Reading:
    """How one answer is read."""

    @property
    def count(self) -> int:
        """Marks in an answer."""
        return 1


class TextReading(Reading, ABC):
    """By what is written."""

    @abstractmethod
    def read(self, text: str) -> Marks | None: ...


@dataclass(frozen=True)
class YesNo(TextReading):
    """1 where the answer begins with yes, 0 where with no."""

    def read(self, text: str) -> Marks | None:
        word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
        return None if word is None else [float(word[1].lower() == "yes")]


@dataclass(frozen=True)
class ProbabilityOf(Reading):
    """Probability that the answer is one of these words, by its first token."""

    words: tuple[str, ...]

    def read(self, words: Words) -> Marks | None:
        return [min(sum(words.get(word, 0.0) for word in self.words), 1.0)] if words else None


@dataclass(frozen=True)
class Rubric(TextReading):
    """A line `Name: 2` for each name; of several lines of a name the last counts. From 0 to `highest`, which is 1."""

    names: tuple[str, ...]
    highest: int

    @property
    def count(self) -> int:
        return len(self.names)

    def read(self, text: str) -> Marks | None:
        marks = []
        for name in self.names:
            found = re.findall(rf"\b{re.escape(name)}\b[\s*_`:\uff1a=-]*(\d+)(?![\d.]*\d)", text, re.IGNORECASE)
            if not found or int(found[-1]) > self.highest:
                return None
            marks.append(int(found[-1]) / self.highest)
        return marks


@dataclass(frozen=True)
class Lists(TextReading):
    """The last lists of whole numbers in the answer, such as [1, 0, 1], with as many numbers as `counts` says."""

    counts: tuple[int, ...]
    lowest: int
    highest: int

    @property
    def count(self) -> int:
        return sum(self.counts)

    def read(self, text: str) -> Marks | None:
        found = [[int(number) for number in re.findall(r"-?\d+", one)] for one in LIST.findall(text)]
        found = found[-len(self.counts) :]
        if tuple(map(len, found)) != self.counts:
            return None
        marks = [float(number) for one in found for number in one]
        return marks if all(self.lowest <= mark <= self.highest for mark in marks) else None
