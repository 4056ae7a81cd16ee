"""One writer to a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
HELD: set[int] = set()  # file descriptors of this process


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes of this machine (and of others, where the file system passes flock on) from writing there.

    The folder is made where it is not there, and is gone again if it stays empty. `.lock` in it goes afterwards; one
    that a kill has left locks nothing.
    A file system that knows no locks goes without.

    Args:
        folder: what only one may write to.
        what: the same in the user's words, such as "the run runs/demo".

    Raises:
        ValueError: somebody else holds the lock; names the process and the remedy.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    held = _open(folder / LOCK, what)
    HELD.add(held)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is let go, so that nobody else's is removed
        HELD.discard(held)
        os.close(held)
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _open(path: Path, what: str) -> int:
    """A descriptor of the file at `path`, locked; not of one that its holder has removed meanwhile."""
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                holder = os.read(held, 200).decode(errors="replace") or "another process"
                os.close(held)
                raise ValueError(
                    f"{what} is being written by {holder}: wait until that has ended, end it, or choose another folder"
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(held)
                raise
        if os.fstat(held).st_nlink:
            os.truncate(held, 0)
            os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return held
        os.close(held)


def _forget() -> None:
    """In a forked child, such as a worker of a DataLoader: it may outlive this process and must not keep its locks."""
    while HELD:
        os.close(HELD.pop())


os.register_at_fork(after_in_child=_forget)
