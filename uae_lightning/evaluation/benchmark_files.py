"""Files of benchmarks, as their authors publish them: read from where the user put them, and none of them is ours."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from uae_lightning.usage import UsageError

Read = TypeVar("Read")


def text_of_file(path: str | Path, name: str, where: str) -> str:
    """The text of a file.

    Args:
        name: of the benchmark.
        where: the file is had, for messages.

    Raises:
        UsageError: there is no such file, or it is no UTF-8 text.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"{name}: {path} does not exist: put {where} there, or correct the path")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: {path} is not UTF-8 text ({error.reason}): take {where} again") from error


def rows_of_csv(path: str | Path, name: str, where: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(where it stands, row) of a table with a head; raises UsageError."""
    reader = csv.DictReader(io.StringIO(text_of_file(path, name, where)), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(
                f"{name}: {path}, line {reader.line_num} is no CSV ({error}): take {where} again"
            ) from error
        if row is None:
            return
        yield f"{path}, line {reader.line_num}", row


def rows_of_json(path: str | Path, name: str, where: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of a list, or of a file with an object a line; raises UsageError."""
    text = text_of_file(path, name, where)
    parts: Iterable[tuple[str, str]] = [(f"{path}", text)] if text.lstrip().startswith("[") else enumerated(path, text)
    for place, part in parts:
        try:
            found = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{name}: {place} is no JSON ({error}): take {where} again") from error
        if isinstance(found, list):
            yield from ((f"{path}, entry {number}", row) for number, row in enumerate(found, 1))
        else:
            yield place, found


def enumerated(path: str | Path, text: str) -> Iterator[tuple[str, str]]:
    lines = enumerate(text.split("\n"), 1)
    return ((f"{path}, line {number}", line) for number, line in lines if line.strip())


def read_rows(rows: Iterable[tuple[str, Any]], read: Callable[[Any], Read], name: str, form: str) -> list[Read]:
    """What `read` makes of each row.

    Args:
        form: of a row, for messages.

    Raises:
        UsageError: `read` raises a ValueError, KeyError, TypeError, AttributeError or IndexError; or there is no row.
    """
    found = []
    for place, row in rows:
        try:
            found.append(read(row))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"{name}: {place} is not in its format ({said[:200]}): {form}") from error
    if not found:
        raise UsageError(f"{name}: no prompts in its file: {form}")
    return found


def text_in(row: dict[str, Any], key: str) -> str:
    """A text that is not empty; raises KeyError or ValueError."""
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is no text: {str(value)[:40]!r}")
    return value.strip()


def figure_name(*words: str) -> str:
    """As figures are called: `attribute_color` of "Attribute - Color"."""
    return re.sub(r"\W+", "_", " ".join(words).lower()).strip("_")


# ------------------------------------------------------------------------------------------------ texts in code


def constants_of(path: str, names: tuple[str, ...], name: str, where: str) -> dict[str, Any]:
    """Values that are written out in a Python file, which is read and never run.

    Raises:
        UsageError: it is no Python, or has no such names.
    """
    found = {}
    for node in parsed(path, name, where).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError as error:
                raise UsageError(f"{name}: {node.targets[0].id} in {path} is not written out: take {where}") from error
    if missing := sorted({*names} - found.keys()):
        raise UsageError(f"{name}: {path} has no {missing[0]}: take {where}")
    return found


def messages_in(path: str, function: str, name: str, where: str) -> list[str]:
    """The texts under "text" in what a function of a Python file builds; the file is read and never run. Where an
    f-string has `{row['Prompt']}`, the text has `{Prompt}`.

    Raises:
        UsageError: it is no Python, or has no such function.
    """
    for node in ast.walk(parsed(path, name, where)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            pairs = [
                pair for one in ast.walk(node) if isinstance(one, ast.Dict)
                for pair in zip(one.keys, one.values, strict=True)
            ]  # fmt: skip
            texts = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "text"]
            return [as_text(value) for value in texts if isinstance(value, ast.Constant | ast.JoinedStr)]
    raise UsageError(f"{name}: {path} has no function {function}: take {where}")


def as_text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(as_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Subscript):
        return "{" + as_text(node.value.slice) + "}"
    return str(node.value) if isinstance(node, ast.Constant) else ""


def parsed(path: str, name: str, where: str) -> ast.Module:
    try:
        return ast.parse(text_of_file(path, name, where))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{name}: {path} is no Python ({error}): take {where}") from error
