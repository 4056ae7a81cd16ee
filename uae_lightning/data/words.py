"""What a word is, also in languages that put no blanks between words."""

from __future__ import annotations

import re

# Chinese and Japanese: each character is a word, as word processors count. (Korean has blanks.)
IDEOGRAPHS = "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
IDEOGRAPHS += "\U00020000-\U0003ffff"
# Thai, Lao, Burmese, Khmer: four letters, vowel signs included, are about a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
MARKS = ".,\u3001-\u3003\u3008-\u3020\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
REPEATED = 4  # words in a row that count as a repetition where they come again
LONGEST = 40  # letters; more without a blank are no word, and count as several


def _pattern(between: str) -> re.Pattern[str]:
    """Words that are parted by blanks and what else is `between`."""
    others = rf"[^\s{between}{IDEOGRAPHS}{UNSPACED}]{{1,{LONGEST}}}"
    return re.compile(rf"[{IDEOGRAPHS}]|[{UNSPACED}]{{1,4}}|{others}")


_WORD, _PIECE = _pattern(MARKS), _pattern("")


def words_of(text: str) -> list[str]:
    """In lower case, as blanks, stops and commas part them."""
    return _WORD.findall(text.lower())


def count_words(text: str) -> int:
    """How much there is to read: words, and the stops and commas that stand between blanks."""
    return len(_PIECE.findall(text))


def ngrams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def repetition(words: list[str], size: int = REPEATED) -> float:
    """Share of the runs of `size` words that came before."""
    runs = ngrams(words, size)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
