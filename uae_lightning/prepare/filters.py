"""Which captions a set does without, and why."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from uae_lightning.data.words import repetition, words_of


@dataclass(frozen=True)
class Caption:
    text: str
    finished: bool  # the model came to an end by itself
    control: bool = False  # it holds, as text, what is a control token for the model


@dataclass(frozen=True)
class CaptionFilter:
    """Args:
    min_words, max_words: of a caption, as blanks, stops and commas part them; where there are none, see `data.words`.
    max_repetition: share of the runs of 4 words that came before in the same caption (`data.words`).
    """

    min_words: int
    max_words: int
    max_repetition: float

    def fault(self, caption: Caption) -> str | None:
        """The first reason against a caption: "empty caption", "unfinished", "broken characters", "too short",
        "too long" or "repetitive"."""
        words = words_of(caption.text)
        if not words:
            return "empty caption"
        if not caption.finished:
            return "unfinished"
        if broken(caption.text):
            return "broken characters"
        if len(words) < self.min_words:
            return "too short"
        if len(words) > self.max_words:
            return "too long"
        return "repetitive" if repetition(words) > self.max_repetition else None


def count_words(text: str) -> int:
    return len(words_of(text))


def broken(text: str) -> bool:
    """Bytes that are no UTF-8 (tokenizers turn them into U+FFFD), halves of surrogate pairs or control characters: what
    no text has, in whatever language."""
    odd = (character for character in text if unicodedata.category(character) in ("Cc", "Cs"))
    return "\ufffd" in text or any(character not in "\n\r\t" for character in odd)
