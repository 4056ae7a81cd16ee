"""Shards of WebDataset, on disk or over a network."""

from __future__ import annotations

import itertools
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from uae_lightning.data.images import SUFFIXES, BadFile
from uae_lightning.data.sources import Columns, Sample, Streamed, texts_of
from uae_lightning.data.tars import groups, shard_names
from uae_lightning.usage import UsageError

ATTEMPTS = 4  # to read a shard over the network


class Shards(Streamed):
    """WebDataset: tar files whose members of one stem (`0001.jpg`, `0001.txt` or `0001.json`) are one sample; `tars`
    says which that are where names have more dots.

    Read as a stream, from disk or from any URL that fsspec knows; a broken connection is taken up again.
    """

    def __init__(self, urls: list[str], columns: Columns) -> None:
        super().__init__(urls[0] if len(urls) == 1 else f"{urls[0]} and {len(urls) - 1} more shards")
        self.urls, self.names, self.columns = urls, shard_names(urls), columns
        for url in urls:
            if "://" not in url and not Path(url).is_file():
                raise FileNotFoundError(f"shard {url} does not exist: correct the path in data.init_args")

    def __len__(self) -> int:
        return len(self.urls)

    def keys(self) -> Iterator[str]:
        return iter(self.urls)

    def read(self, unit: int, part: int = 0, parts: int = 1) -> Iterator[Sample]:
        return itertools.islice(persistent(partial(self._behind, unit), self.urls[unit]), part, None, parts)

    def _behind(self, unit: int, done: int) -> Iterator[Sample]:
        for sample in itertools.islice(_read_tar(self.urls[unit], self.columns), done, None):
            yield replace(sample, key=f"{self.names[unit]}/{sample.key}")


def persistent(
    read: Callable[[int], Iterator[Sample]],
    name: str,
    damage: tuple[type[Exception], ...] = (tarfile.ReadError,),
    start: int = 0,
) -> Iterator[Sample]:
    """The samples of a shard from the one at `start` on, read on where the network broke.

    Args:
        read: gives the samples behind the first so many.
        name: of the shard, for messages; key of the sample that says that it is empty or damaged.
        damage: what `read` raises where the shard itself is damaged: its end, one more unusable sample.

    Raises:
        UsageError, ValueError: it cannot be read at all; after `ATTEMPTS` attempts.
    """
    done = start
    for attempt in range(1, ATTEMPTS + 1):
        try:
            for sample in read(done):
                yield sample
                done += 1
            if not done:
                yield Sample(name, BadFile("empty shard"), None)
            return
        except damage as error:
            yield Sample(name, BadFile("damaged shard", f"after {done} samples: {error}"), None)
            return
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:  # will be so again
            raise UsageError(f"shard {name} cannot be read: {error}; correct the path in data.init_args") from error
        except Exception as error:  # of the network: each file system of fsspec has its own
            if attempt == ATTEMPTS:
                raise ValueError(
                    f"shard {name} cannot be read after {ATTEMPTS} attempts: {error}; start again, with --resume "
                    "where there is one, once it can be reached"
                ) from error
            time.sleep(2**attempt)


def _read_tar(url: str, columns: Columns) -> Iterator[Sample]:
    import fsspec  # comes with torch and lightning

    with fsspec.open(url, "rb") as file:
        for stem, files, others in groups(file):
            image = next((content for suffix, content in files.items() if suffix in SUFFIXES), None)
            if image is None:
                image = BadFile("no picture", f"only {', '.join(files)}")
            caption, prompt, metadata = texts_of(files, columns)
            yield Sample(stem, image, caption, others, prompt, metadata)
