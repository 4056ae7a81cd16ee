"""A folder that `Dataset.save_to_disk` of the package `datasets` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uae_lightning.data.dataset_rows import chosen_columns, row_sample
from uae_lightning.data.images import BadFile
from uae_lightning.data.sources import Columns, Indexed, Sample
from uae_lightning.usage import UsageError


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
            rows = datasets.load_from_disk(str(folder))
        except Exception as error:  # of pyarrow, json and datasets
            raise UsageError(
                f"{folder} is empty, damaged or unfinished ({type(error).__name__}: {str(error)[:200]}): save it again "
                "with Dataset.save_to_disk"
            ) from error
        if isinstance(rows, dict):
            splits = " or ".join(str(folder / name) for name in rows)
            raise UsageError(f"{folder} holds several data sets: name one of them, {splits}")
        if not len(rows):
            raise UsageError(f"{folder} has no rows: save a data set with pictures, or correct data.init_args.path")
        self.columns, self.rows = columns, chosen_columns(rows, columns, str(folder))

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
        return row_sample(key, row, self.columns)
