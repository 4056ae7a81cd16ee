"""What our own weight files promise: they are as they were written, and readable by whom the umask says."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"  # in the format of sha256sum: `sha256sum -c SHA256SUMS` checks them too
READ: dict[tuple[int, ...], str] = {}  # the state of a file -> its SHA-256, of those this process has read whole


def seal(folder: Path, known: Mapping[Path, str] | None = None) -> None:
    """Ends a `save`: SHA256SUMS lists every safetensors file under `folder`, and all have its mode.

    safetensors 0.8 and the libraries on it write files that their owner alone can read (mode 0600).

    Args:
        known: the SHA-256 of files, from who wrote them; the others are read.
    """
    files, known = sorted(folder.rglob("*.safetensors")), known or {}
    sums = folder / SUMS
    sums.unlink(missing_ok=True)  # one that is written over would keep its mode
    lines = (f"{known.get(file) or digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
    sums.write_text("".join(lines))
    for file in files:
        shutil.copymode(sums, file)


def verify(folder: Path, part: str = "") -> None:
    """Compares the files that SHA256SUMS of `folder` lists; without such a list nothing is known.

    Args:
        folder: that `seal` was called with.
        part: of the files, those in this sub-folder, or one file.

    A file is read once in a process: the stages of a run start from the same gigabytes.

    Raises:
        ValueError: a file is not what was written, or the list is damaged.
        FileNotFoundError: a file is missing.
    """
    if not (folder / SUMS).is_file():
        return
    for wanted, name in listed(folder / SUMS):
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, which {folder / SUMS} lists: copy the folder again; if it was removed on purpose, "
                f"delete {SUMS}"
            )
        if Path(name).is_relative_to(part) and digest(file) != wanted:
            raise ValueError(
                f"{file} is not what was written there: it is damaged, or was replaced. Copy it again or repeat the "
                f"stage that wrote it; if it was replaced on purpose, delete {folder / SUMS}"
            )


def listed(sums: Path) -> list[tuple[str, str]]:
    """(SHA-256, name below its folder) of each line; raises ValueError where a line is not that, or there is none."""
    lines = sums.read_text(errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^\0]+)", line) for line in lines]
    if not found or None in found:
        raise ValueError(f"{sums} is damaged: copy the folder again, or delete that file if the others are whole")
    return [(match[1], match[2]) for match in found]


def digest(file: Path) -> str:
    """SHA-256 of a file, as it was read before where nothing has written to it since."""
    before = state(file)
    if before not in READ:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if state(file) != before:
            return found
        READ[before] = found
    return READ[before]


def state(file: Path) -> tuple[int, ...]:
    """Which file it is, and when it was last written."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
