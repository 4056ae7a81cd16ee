"""Samples of a cache in safetensors files that tell all there is to know: no index beside them can disagree.

A shard of N samples:
  latents   [N, C, h, w]
  states    [rows, hidden]  last-layer states of the captions, one after the other, without padding
  text      [bytes] uint8   JSON [key, caption] of each sample, one after the other
  ends      [N + 1, 2]      where each sample begins and ends in `states` and in `text`
  content   [N, 32] uint8   digest of the picture's bytes, then of the caption
  checksums [N]             CRC-32 of each sample
Its metadata say what made it (`fingerprint`) and with which command.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uae_lightning.data.fingerprint import Fingerprint, differences
from uae_lightning.files import replacing
from uae_lightning.usage import UsageError

FORMAT_NAME = "uae cache"
FORMAT = f"{FORMAT_NAME} 2"  # key of the metadata
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
SUFFIX = ".safetensors"
SHARD = re.compile(r"cache(-\d+of\d+)?-\d{6}\.safetensors")
LONGEST_HEADER = 100_000_000  # bytes; that of safetensors itself
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

    @property
    def text(self) -> bytes:
        return json.dumps([self.key, self.caption]).encode()

    @property
    def checksum(self) -> int:
        shapes = f"{self.latents.dtype} {list(self.latents.shape)} {self.states.dtype} {list(self.states.shape)}"
        checksum = zlib.crc32(self.content + self.text + shapes.encode())
        for tensor in (self.latents, self.states):
            checksum = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), checksum)
        return checksum


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
        return {FORMAT: json.dumps({"made_by": self.made_by, "command": self.command, "checksum": self.checksum})}

    @property
    def checksum(self) -> int:
        return zlib.crc32(json.dumps([self.made_by, self.command]).encode())


def write_shard(path: Path, entries: list[Entry], header: Header) -> None:
    """All of it or nothing; OSError where it cannot be written.

    Not by `save_file` of safetensors 0.8: that writes to a `.tmpXXXXXX` of its own, which a kill leaves behind, and to
    files that nobody else may read.
    """
    texts = [entry.text for entry in entries]
    lengths = torch.tensor([[0, 0], *([len(e.states), len(text)] for e, text in zip(entries, texts, strict=True))])
    tensors = {
        "latents": torch.stack([entry.latents for entry in entries]),
        "states": torch.cat([entry.states for entry in entries]),
        "text": _bytes(b"".join(texts)),
        "ends": lengths.cumsum(0),
        "content": _bytes(b"".join(entry.content for entry in entries)).view(len(entries), -1),
        "checksums": torch.tensor([entry.checksum for entry in entries]),
    }
    with replacing(path) as partial:
        partial.write_bytes(save(tensors, header.metadata()))


def read_entry(path: Path, row: int) -> Entry:
    """One sample; nothing else of the file is read.

    Raises:
        ValueError: the sample is not what was written.

    Not by `safe_open`: of safetensors 0.8 it loses some 60 bytes of memory with every tensor (measured), which adds up
    over millions of samples, and takes ten times as long.
    """
    with path.open("rb", buffering=0) as file:
        try:
            rows = _Rows(file)
            (state, text), (states_end, text_end) = rows("ends", row, row + 2).tolist()
            key, caption = json.loads(_text(rows("text", text, text_end)))
            [latents], states = rows("latents", row, row + 1), rows("states", state, states_end)
            entry = Entry(_text(rows("content", row, row + 1)), key, caption, latents, states)
            right = entry.checksum == rows("checksums", row, row + 1).item()
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise damaged(path, error) from error
    if not right:
        raise damaged(path, f"sample {row} does not have its checksum")
    return entry


class _Rows:
    """Rows of the tensors in a safetensors file: 8 bytes for the length of a JSON header, the header, the data."""

    def __init__(self, file: BinaryIO) -> None:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"header of {length:,} bytes")
        self.file, self.data, self.header = file, 8 + length, json.loads(file.read(length))

    def __call__(self, name: str, first: int, last: int) -> Tensor:
        about = self.header[name]
        dtype, (count, *shape) = DTYPES[about["dtype"]], about["shape"]
        if not 0 <= first <= last <= count:
            raise ValueError(f"no rows {first} to {last} of {count} in {name}")
        size = dtype.itemsize * math.prod(shape)
        data = os.pread(self.file.fileno(), (last - first) * size, self.data + about["data_offsets"][0] + first * size)
        return torch.frombuffer(bytearray(data), dtype=dtype).view(last - first, *shape)


def contents(path: Path) -> list[bytes]:
    """Digests of the samples of a shard, in order."""
    with opened(path) as shard:
        return [bytes(row) for row in shard.get_tensor("content").numpy()]


def inspect(path: Path) -> tuple[Header, int]:
    """Header, and number of samples.

    Raises:
        UsageError: somebody else wrote it, or another version.
        ValueError: it is damaged.
    """
    with opened(path) as shard:
        metadata = shard.metadata() or {}
        if about := json.loads(metadata.get(FORMAT, "null")):
            header, count = Header(about["made_by"], about["command"]), shard.get_slice("content").get_shape()[0]
            wrong = about["checksum"] != header.checksum
    if not about and written_by_cache(metadata):
        raise UsageError(f"{path} was written by another version of `uae cache`: make it again with --overwrite")
    if not about:
        raise foreign_file(path)
    if wrong:
        raise damaged(path, "the metadata do not have their checksum")
    return header, count


def written_by_cache(metadata: dict[str, str]) -> bool:
    """Whether a cache of any version wrote a file with these metadata."""
    return any(name.startswith(FORMAT_NAME) for name in metadata)


def shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if SHARD.fullmatch(path.name))


def foreign_file(path: Path) -> UsageError:
    return UsageError(f"{path} is a foreign file, not written by `uae cache`: name another folder, or move it away")


def inspect_all(folder: Path) -> tuple[Header | None, list[Path], list[int]]:
    """The header of all shards (None where there are none), the shards and their numbers of samples.

    Raises:
        UsageError: the shards were not all made by the same, or there are other safetensors among them.
        ValueError: one is damaged.
    """
    header, files, counts = None, shards_in(folder), []
    if strange := sorted(path for path in folder.glob(f"*{SUFFIX}") if path not in files):
        raise foreign_file(strange[0])
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
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"{path} is damaged ({why}): delete it and run `uae cache` again, which makes up for what is missing"
    )


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _text(values: Tensor) -> bytes:
    return values.numpy().tobytes()
