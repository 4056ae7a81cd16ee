"""What a command that goes on where it stopped says when the disk is full, or nobody may write there."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


@contextmanager
def enough_space(folder: Path) -> Iterator[None]:
    """Raises ValueError in place of an OSError that says so; `folder` is where shards are written, whole or not."""
    try:
        yield
    except OSError as error:
        if error.errno in FORBIDDEN:
            raise ValueError(
                f"{str(error.filename or folder)[:300]}: {error.strerror}; correct the path or the permissions, or "
                "name another folder with --to"
            ) from error
        if error.errno not in NO_SPACE:
            raise
        raise ValueError(
            f"no space is left for {folder} ({error.strerror}): make some, and run the same command again; the shards "
            "that are there are whole, and it goes on behind them"
        ) from error
