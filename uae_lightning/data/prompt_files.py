"""Where prompts lie: a text with one a line, a JSONL, a parquet, or a folder of texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae_lightning.data.sources import Indexed
from uae_lightning.data.words import count_words
from uae_lightning.usage import UsageError, closest


@dataclass(frozen=True)
class PromptRow:
    """A prompt and what its file says of it beside the text: the row of a JSONL, such as GenEval's metadata."""

    text: str
    metadata: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return self.text


class Prompts(Indexed):
    """A list of them, in memory."""

    def __init__(self, name: str, prompts: list[PromptRow]) -> None:
        super().__init__(name)
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def keys(self) -> Iterator[str]:
        return (prompt.key for prompt in self.prompts)

    def sample(self, unit: int) -> PromptRow:
        return self.prompts[unit]


def open_prompts(paths: str | list[str], column: str, max_words: int, option: str = "path") -> Prompts:
    """All prompts of one file or folder, or of several, in their order.

    Args:
        column: that of a JSONL or a parquet which holds the prompts.
        max_words: longer prompts are refused: a batch is as wide as its longest text.
        option: of the data module, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is no file of prompts, or holds none, or one that is too long.
    """
    names = [paths] if isinstance(paths, str) else paths
    found: list[PromptRow] = []
    for name in names:
        path, before = Path(name).expanduser(), len(found)
        for place, prompt in read_file(path, column, option):
            if (words := count_words(prompt.text)) > max_words:
                raise UsageError(
                    f"{place}: a prompt of {words:,} words, the limit is {max_words:,}: shorten it, or raise "
                    "data.init_args.max_prompt_words"
                )
            if prompt.text:
                found.append(prompt)
        if len(found) == before:
            raise UsageError(f"{path} has no prompts: write one a line, or correct data.init_args.{option}")
    if not found:
        raise UsageError(f"data.init_args.{option} names no file: give one with prompts")
    return Prompts(", ".join(names), found)


def read_file(path: Path, column: str, option: str) -> Iterator[tuple[str, PromptRow]]:
    """(where it stands, prompt); empty ones are among them."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: correct data.init_args.{option}")
    if path.is_dir():
        return of_folder(path)
    if (kind := KINDS.get(path.suffix.lower())) is None:
        raise UsageError(
            f"{path}: prompts are read from a {', a '.join(KINDS)}, or a folder of .txt files with one prompt each: "
            f"correct data.init_args.{option}"
        )
    return kind(path, column)


def of_folder(folder: Path) -> Iterator[tuple[str, PromptRow]]:
    """A file is a prompt (as DPG-Bench has them), those of folders below too."""
    for path in sorted(folder.rglob("*.txt")):
        yield str(path), PromptRow(" ".join(text_of(path).split()))


def of_text(path: Path, column: str) -> Iterator[tuple[str, PromptRow]]:
    """A line is a prompt."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        yield f"{path}, line {number}", PromptRow(line.strip())


def of_jsonl(path: Path, column: str) -> Iterator[tuple[str, PromptRow]]:
    """A line is an object; all of it is the prompt's metadata."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place}: not JSON ({error}); write one JSON object per line") from error
        row = row if isinstance(row, dict) else {}
        yield place, PromptRow(text_in(row.get(column), place, column, list(row)), row)


def of_parquet(path: Path, column: str) -> Iterator[tuple[str, PromptRow]]:
    """A row is a prompt; its other columns, which may be pictures, are not read."""
    try:
        import pyarrow.parquet  # optional, and half a second
    except ImportError as error:
        raise UsageError(f"{path}: pyarrow reads parquet: pip install 'uae-lightning[data]'") from error
    try:
        names = pyarrow.parquet.read_schema(path).names
        texts = pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist() if column in names else [None]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} is no parquet, or damaged ({str(error)[:200]}): copy it again") from error
    for number, value in enumerate(texts, 1):
        place = f"{path}, row {number}"
        yield place, PromptRow(text_in(value, place, column, names))


def text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as such") from error


def text_in(value: Any, place: str, column: str, names: list[str]) -> str:
    """Raises UsageError where a column of that name is not there, or holds no text."""
    if not isinstance(value, str):
        found = f"only {', '.join(map(repr, names))}" if names and column not in names else f"{value!r}"[:60]
        raise UsageError(
            f"{place}: no text under {column!r}, {found}{closest(column, names) if column not in names else ''}; name "
            "the column that holds prompts with data.init_args.prompt_column"
        )
    return " ".join(value.split())


KINDS: dict[str, Callable[[Path, str], Iterator[tuple[str, PromptRow]]]] = {
    ".txt": of_text,
    ".jsonl": of_jsonl,
    ".parquet": of_parquet,
}
