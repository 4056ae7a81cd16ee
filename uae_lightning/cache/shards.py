"""Samples of a cache in safetensors files that tell all there is to know: no index beside them can disagree.

A shard of N samples:
  latents   [N, C, h, w]
  states    [rows, hidden]  last-layer states of the captions, one after the other, without padding
  text      [bytes] uint8   JSON [key, caption] of each sample, one after the other
  ends      [N + 1, 2]      where each sample begins and ends in `states` and in `text`
  content   [N, 32] uint8   digest of the picture's bytes, then of the caption
Its metadata say what made it (`fingerprint`) and with which command.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uae_lightning.cache.fingerprint import Fingerprint, differences
from uae_lightning.checkpoint_io import replacing
from uae_lightning.usage import UsageError

FORMAT = "uae cache 1"  # key of the metadata
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
SUFFIX = ".safetensors"
PIXELS = "resolution in pixels"  # in the fingerprint of a cache; a stage does not know it


@dataclass(frozen=True)
class Entry:
    """One picture with its caption."""

    content: bytes  # 32: digest of the picture's bytes, then of the caption
    key: str
    caption: str
    latents: Tensor  # [C, h, w]
    states: Tensor  # [L, hidden]

    @property
    def size(self) -> int:
        """Bytes on disk, about."""
        return self.latents.nbytes + self.states.nbytes + len(self.key) + len(self.caption)


@dataclass(frozen=True)
class Header:
    """What all shards of one cache share."""

    made_by: Fingerprint
    command: str  # that makes it again

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.made_by[PIXELS])

    def metadata(self) -> dict[str, str]:
        """One value alone: safetensors writes several in any order, and shards would differ."""
        return {FORMAT: json.dumps({"made_by": self.made_by, "command": self.command})}


def write_shard(path: Path, entries: list[Entry], header: Header) -> None:
    """All of it or nothing; OSError where it cannot be written.

    Not by `save_file` of safetensors 0.8: that writes to a `.tmpXXXXXX` of its own, which a kill leaves behind, and to
    files that nobody else may read.
    """
    texts = [json.dumps([entry.key, entry.caption]).encode() for entry in entries]
    lengths = torch.tensor([[0, 0], *([len(e.states), len(text)] for e, text in zip(entries, texts, strict=True))])
    tensors = {
        "latents": torch.stack([entry.latents for entry in entries]),
        "states": torch.cat([entry.states for entry in entries]),
        "text": _bytes(b"".join(texts)),
        "ends": lengths.cumsum(0),
        "content": _bytes(b"".join(entry.content for entry in entries)).view(len(entries), -1),
    }
    with replacing(path) as partial:
        partial.write_bytes(save(tensors, header.metadata()))


def read_entry(path: Path, row: int) -> Entry:
    """One sample; nothing else of the file is read.

    Not by `safe_open`: of safetensors 0.8 it loses some 60 bytes of memory with every tensor (measured), which adds up
    over millions of samples, and takes ten times as long.
    """
    with path.open("rb", buffering=0) as file:
        rows = _Rows(file)
        (state, text), (states_end, text_end) = rows("ends", row, row + 2).tolist()
        key, caption = json.loads(_text(rows("text", text, text_end)))
        [latents], states = rows("latents", row, row + 1), rows("states", state, states_end)
        return Entry(_text(rows("content", row, row + 1)), key, caption, latents, states)


class _Rows:
    """Rows of the tensors in a safetensors file: 8 bytes for the length of a JSON header, the header, the data."""

    def __init__(self, file: BinaryIO) -> None:
        length = int.from_bytes(file.read(8), "little")
        self.file, self.data, self.header = file, 8 + length, json.loads(file.read(length))

    def __call__(self, name: str, first: int, last: int) -> Tensor:
        about = self.header[name]
        dtype, shape = DTYPES[about["dtype"]], about["shape"][1:]
        size = dtype.itemsize * math.prod(shape)
        data = os.pread(self.file.fileno(), (last - first) * size, self.data + about["data_offsets"][0] + first * size)
        return torch.frombuffer(bytearray(data), dtype=dtype).view(last - first, *shape)


def contents(path: Path) -> list[bytes]:
    """Digests of the samples of a shard, in order."""
    with opened(path) as shard:
        return [bytes(row) for row in shard.get_tensor("content").numpy()]


def inspect(path: Path) -> tuple[Header, int]:
    """Header, and number of samples."""
    with opened(path) as shard:
        about = (shard.metadata() or {}).get(FORMAT)
        if about is None:
            raise UsageError(f"{path} was not written by this version of `uae cache`: make the cache again with it")
        return Header(**json.loads(about)), shard.get_slice("content").get_shape()[0]


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def inspect_all(folder: Path) -> tuple[Header | None, list[Path], list[int]]:
    """The header of all shards (None where there are none), the shards and their numbers of samples.

    Raises:
        UsageError: the shards were not all made by the same.
    """
    header, files, counts = None, shards_in(folder), []
    for file in files:
        own, count = inspect(file)
        counts.append(count)
        header = header or own
        if differs := differences(header.made_by, own.made_by):
            raise UsageError(
                f"{folder} holds shards of two caches: {file.name} differs from {files[0].name} in {differs[0]}; "
                f"make it again with `{own.command} --overwrite`"
            )
    return header, files, counts


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """Raises ValueError where the file is damaged: shards are whole when they get their names."""
    try:
        with safe_open(path, "pt") as shard:
            yield shard
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and run `uae cache` again, which makes up for what is missing"
        ) from error


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _text(values: Tensor) -> bytes:
    return values.numpy().tobytes()
