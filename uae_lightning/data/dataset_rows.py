"""Rows of the package `datasets`, saved or streamed: which of their columns are read, and what a row is as a sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from uae_lightning.data.chat_rows import CHAT
from uae_lightning.data.images import BadFile
from uae_lightning.data.sources import Columns, Sample
from uae_lightning.usage import UsageError

IMAGE, PARTS = "PIL.Image.Image", {"bytes", "path"}  # what `datasets` calls pictures, and stores them as
STRINGS = ("string", "large_string", "string_view")
TEXTS = (*STRINGS, "null")
READABLE = {"image": (*STRINGS, "binary", "large_binary", "binary_view"), "caption": TEXTS, "prompt": TEXTS}


def chosen_columns(rows: Any, columns: Columns, name: str) -> Any:
    """The same `Dataset` or `IterableDataset` with the columns that are read, pictures as the bytes or paths they are
    stored as.

    Raises:
        UsageError: one that is needed is not there or of another kind; `name` says of which data set.
    """
    import datasets

    names = rows.column_names
    chat = CHAT <= {*names} and columns.image not in names
    _check_names(names, columns, name, chat)
    kept = {kind: column for kind in READABLE if (column := getattr(columns, kind)) in names}
    for kind, column in kept.items():
        _check_kind(rows.features[column], kind, column, name)
    wanted = [*kept.values(), *columns.metadata, *(sorted(CHAT) if chat else ())]
    rows = rows.select_columns(list(dict.fromkeys(wanted)))
    stored = datasets.Image(decode=False)
    for column, feature in list(rows.features.items()):
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, stored)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            rows = rows.cast_column(column, datasets.List(stored))
    return rows


def _check_names(names: list[str], columns: Columns, name: str, chat: bool) -> None:
    """A chat holds what would be looked for in columns."""
    needed = ["image", *["caption"] * columns.captions_needed, *["prompt"] * (columns.prompt is not None)]
    for kind in () if chat else needed:
        if (column := getattr(columns, kind)) not in names:
            raise UsageError(
                f"{name} has no column {column!r}, only {', '.join(map(repr, names))}: name the right one with "
                f"data.init_args.{kind}_column"
            )
    if without := [column for column in columns.metadata if column not in names]:
        raise UsageError(
            f"{name} has no column {without[0]!r}, only {', '.join(map(repr, names))}: correct "
            "data.init_args.metadata_columns"
        )


def _check_kind(feature: Any, kind: str, column: str, name: str) -> None:
    dtype = getattr(getattr(feature, "feature", feature) if kind == "caption" else feature, "dtype", None)
    picture = kind == "image" and (dtype == IMAGE or (isinstance(feature, dict) and feature.keys() >= PARTS))
    if not picture and dtype not in READABLE[kind]:
        raise UsageError(
            f"{name}: column {column!r} holds {dtype or feature}, where {kind}s are "
            f"{'pictures, paths or bytes of files' if kind == 'image' else 'strings'}: name another with "
            f"data.init_args.{kind}_column"
        )


def row_sample(
    key: str, row: dict[str, Any], columns: Columns, at: Callable[[str], bytes | Path | BadFile] = Path
) -> Sample:
    """A row of `chosen_columns`; `at` says what lies at the path that a row may give in place of a picture's bytes."""
    try:
        row = columns.of_chat(row)
    except ValueError as error:
        return Sample(key, BadFile("no chat about one picture", str(error)), None)
    image = row.get(columns.image)
    if isinstance(image, dict):  # of an Image column: one of both is None
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if image is None:
        image = BadFile("no picture", "the row is empty")
    image = at(image) if isinstance(image, str) else image
    caption, prompt, metadata = columns.caption_in(row), columns.prompt_in(row), columns.metadata_in(row)
    return Sample(key, image, caption, prompt=prompt, metadata=metadata)
