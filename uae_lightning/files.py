"""Files and folders that are whole or absent, also after a kill; and what every command says when a disk is full or a
place may not be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uae_lightning.usage import UsageError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
WRITERS = ("inline_container.cc", "PytorchStreamWriter", "iostream error", "os error 28", "os error 27", "os error 122")


@contextmanager
def enough_space(folder: Path) -> Iterator[None]:
    """Raises ValueError in place of an OSError that says so; `folder` is where shards are written, whole or not."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise ValueError(
            f"no space is left for {folder} ({error.strerror}): make some, and run the same command again; the shards "
            "that are there are whole, and it goes on behind them"
        ) from error


def explained(error: Exception) -> str | None:
    """The message for an error of the disk; None for any other."""
    if unfinished(error):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, BrokenPipeError):
        return None
    place = "" if error.filename is None else f"{error.filename}: "
    if error.errno in NO_SPACE:
        again = "make some, then give the same command again (with --resume, if it has that)"
        return f"{place}no space is left ({error.strerror}): {again}"
    if error.errno in NOT_ALLOWED:
        return f"{place}{error.strerror}: change the permissions of that place, or name another"
    return f"{place}{error.strerror}"


def unfinished(error: Exception) -> bool:
    """Whether torch or safetensors say, in words of their own, that they could not write a file to its end."""
    return not isinstance(error, OSError) and any(word in str(error) for word in WRITERS)


def check_writable(path: Path, option: str) -> None:
    """Before time is spent: whether the file `path` that `option` names could be made, folders above it included.

    Raises:
        UsageError: it could not.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written ({error.strerror}): name another place") from error


def check_room(place: Path, needed: int, what: str) -> None:
    """Before anything is written: whether the disk has room for `needed` bytes of `what`.

    Raises:
        ValueError: it has not.
    """
    free = shutil.disk_usage(next(folder for folder in (place, *place.absolute().parents) if folder.exists())).free
    if free < needed:
        raise ValueError(
            f"no space is left for {what}: {size(needed)} are needed, {place} has {size(free)}; make room, then give "
            "the same command again (with --resume, if it has that)"
        )


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an error of the disk that does not say of what it speaks, as that of a write, speak of `path`."""
    try:
        yield
    except Exception as error:
        if unfinished(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def shared(path: Path) -> None:
    """Gives a file the permissions that the user's mask allows; safetensors and temporary files have 0600."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


# ------------------------------------------------------------------------------------------------ whole or absent


PARTIAL, PREVIOUS = ".uae-partial", ".uae-previous"  # no file of the user is called so


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the path it yields; `path` appears, or is replaced, only once that file is whole and on disk.

    The partial file lies in the same folder (a rename is atomic within one file system only) and is named
    `PATH.uae-partial`, which no "*.ckpt" finds. An exception inside removes it; a kill leaves it, and the next write
    overwrites it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    if partial.is_dir():  # left by a killed `replacing_folder`
        remove(partial)
    try:
        with naming(path):
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        shared(partial)
        swap(partial, path) if path.is_dir() else os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, main: bool, barrier: Callable[[], Any]) -> Iterator[Path]:
    """The same for a folder that all ranks write to; `main` is true on the one that makes and renames it.

    A folder that is not empty cannot be replaced in one step: a kill between the two steps leaves the earlier one as
    `PATH.uae-previous`, where `recover` finds it.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    if main:
        remove(partial)
        partial.mkdir(parents=True)
    barrier()
    yield partial
    barrier()
    if main:
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        swap(partial, path)
    barrier()


@contextmanager
def making_folder(target: Path) -> Iterator[Path]:
    """A folder to write to; it becomes `target` when all is on disk, and is removed after an exception.

    A kill leaves it as `TARGET.uae-partial`, which the next call clears.

    Raises:
        ValueError: the disk is full, or nobody may write there.
    """
    partial = target.with_name(target.name + PARTIAL)
    remove(partial)
    try:
        partial.mkdir(parents=True)
        with naming(target):
            yield partial
            for file in filter(Path.is_file, partial.rglob("*")):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                shared(file)
        swap(partial, target)
    except FileNotFoundError:  # of what was to be written into it
        raise
    except OSError as error:
        raise ValueError(f"--to {target} cannot be written: {explained(error) or error}") from error
    finally:
        remove(partial)


def swap(partial: Path, path: Path) -> None:
    """`partial` becomes `path`, which may be a file, a folder or absent."""
    previous = path.with_name(path.name + PREVIOUS)
    remove(previous)
    if path.exists():
        path.rename(previous)
    partial.rename(path)
    remove(previous)


def recover(path: Path) -> None:
    """Undoes a `swap` that was killed half-way: what was at `path` before is there again."""
    previous = path.with_name(path.name + PREVIOUS)
    if previous.exists() and not path.exists():
        previous.rename(path)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """All of it or nothing, also where the process is killed; `indent` None is one line."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=indent))
