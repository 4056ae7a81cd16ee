"""A folder that `Dataset.save_to_disk` of the package `datasets` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uae_lightning.data.images import BadFile
from uae_lightning.data.sources import Columns, Indexed, Sample
from uae_lightning.usage import UsageError

IMAGE, PARTS = "PIL.Image.Image", {"bytes", "path"}  # what `datasets` calls pictures, and stores them as
STRINGS = ("string", "large_string", "string_view")
TEXTS = (*STRINGS, "null")
READABLE = {"image": (*STRINGS, "binary", "large_binary", "binary_view"), "caption": TEXTS, "prompt": TEXTS}


class SavedDataset(Indexed):
    """One row is one picture; memory-mapped."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        super().__init__(str(folder))
        try:
            import datasets
        except ImportError as error:
            raise UsageError(
                f"{folder} was saved by the package `datasets`, which is not installed: "
                "pip install 'uae-lightning[data]'"
            ) from error
        try:
            self.rows = datasets.load_from_disk(str(folder))
        except Exception as error:  # of pyarrow, json and datasets
            raise UsageError(
                f"{folder} is empty, damaged or unfinished ({type(error).__name__}: {str(error)[:200]}): save it again "
                "with Dataset.save_to_disk"
            ) from error
        if isinstance(self.rows, dict):
            splits = " or ".join(str(folder / name) for name in self.rows)
            raise UsageError(f"{folder} holds several data sets: name one of them, {splits}")
        if not len(self.rows):
            raise UsageError(f"{folder} has no rows: save a data set with pictures, or correct data.init_args.path")
        self.columns, names = columns, self.rows.column_names
        needed = ["image", *["caption"] * columns.captions_needed, *["prompt"] * (columns.prompt is not None)]
        for kind in needed:
            if (name := getattr(columns, kind)) not in names:
                raise UsageError(
                    f"{folder} has no column {name!r}, only {', '.join(map(repr, names))}: name the right one with "
                    f"data.init_args.{kind}_column"
                )
        kept = {kind: name for kind in READABLE if (name := getattr(columns, kind)) in names}
        for kind, name in kept.items():
            self._check(kind, name)
        if without := [name for name in columns.metadata if name not in names]:
            raise UsageError(
                f"{folder} has no column {without[0]!r}, only {', '.join(map(repr, names))}: correct "
                "data.init_args.metadata_columns"
            )
        self.rows = self.rows.select_columns(list(dict.fromkeys([*kept.values(), *columns.metadata])))
        if isinstance(self.rows.features[columns.image], datasets.Image):
            self.rows = self.rows.cast_column(columns.image, datasets.Image(decode=False))

    def _check(self, kind: str, name: str) -> None:
        feature = self.rows.features[name]
        dtype = getattr(getattr(feature, "feature", feature) if kind == "caption" else feature, "dtype", None)
        picture = kind == "image" and (dtype == IMAGE or (isinstance(feature, dict) and feature.keys() >= PARTS))
        if not picture and dtype not in READABLE[kind]:
            raise UsageError(
                f"{self.name}: column {name!r} holds {dtype or feature}, where {kind}s are "
                f"{'pictures, paths or bytes of files' if kind == 'image' else 'strings'}: name another with "
                f"data.init_args.{kind}_column"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> Iterator[str]:
        return (f"{unit:09d}" for unit in range(len(self)))

    def sample(self, unit: int) -> Sample:
        key = f"{unit:09d}"
        try:
            row = self.rows[unit]
        except Exception as error:  # of pyarrow: text that is not in UTF-8, places outside of the file
            return Sample(key, BadFile("damaged row", str(error)), None)
        image = row[self.columns.image]
        if isinstance(image, dict):  # of an Image column: one of both is None
            image = image["path"] if image["bytes"] is None else image["bytes"]
        if image is None:
            image = BadFile("no picture", "the row is empty")
        image = Path(image) if isinstance(image, str) else image
        columns = self.columns
        caption, prompt, metadata = columns.caption_in(row), columns.prompt_in(row), columns.metadata_in(row)
        return Sample(key, image, caption, prompt=prompt, metadata=metadata)
