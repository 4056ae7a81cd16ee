"""What every command says when a disk is full or a place may not be written, and how it finds out in time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
