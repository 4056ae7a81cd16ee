"""Which kind of source a path is."""

from __future__ import annotations

import re
from pathlib import Path

from uae_lightning.data.hub_dataset import HUB, HubDataset
from uae_lightning.data.saved_dataset import SavedDataset
from uae_lightning.data.shards import Shards
from uae_lightning.data.sources import Columns, Folder, JsonLines, Source
from uae_lightning.data.tars import is_tar, shard_urls
from uae_lightning.paths import HUB_ID
from uae_lightning.usage import UsageError


def open_source(path: str | list[str], columns: Columns, option: str = "path") -> Source:
    """The source at `path`: a folder of pictures, a `.jsonl`, shards (a `.tar`, a folder, a pattern such as
    `{000..127}.tar` or `*.tar`, URLs or a list of them), a folder saved by `datasets`, or `hub:OWNER/NAME`.

    Raises:
        UsageError, FileNotFoundError: there is none, or nobody may read it; `option` of the data module is named.
    """
    if not path:
        raise UsageError(f"data.init_args.{option} is empty: name a folder of pictures, a .jsonl or .tar shards")
    try:
        return _opened(path, columns, option)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"{str(path)[:300]} cannot be read ({error.strerror}): correct data.init_args.{option}, or the permissions"
        ) from error


def _opened(path: str | list[str], columns: Columns, option: str) -> Source:
    if isinstance(path, str) and path.startswith(HUB):
        return HubDataset(path, columns, option)
    if isinstance(path, list) or "://" in path or re.search(r"[{*?]", path):
        return Shards(shard_urls(path), columns)
    place = Path(path)
    if place.is_dir():
        if (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
            return SavedDataset(place, columns)
        tars = sorted(map(str, place.glob("*.tar")))
        return Shards(tars, columns) if tars else Folder(place, columns)
    if not place.is_file():
        hub = f", or name a data set of the hub as {HUB}{path}" if HUB_ID.fullmatch(path) else ""
        raise FileNotFoundError(f"{path} does not exist: correct data.init_args.{option}{hub}")
    if is_tar(path):
        return Shards([path], columns)
    if place.suffix != ".jsonl":
        raise UsageError(
            f"data.init_args.{option} must be a folder of pictures, a .jsonl, .tar shards, a folder saved by "
            f"`datasets` or {HUB}OWNER/NAME, got {path}"
        )
    return JsonLines(place, columns)
