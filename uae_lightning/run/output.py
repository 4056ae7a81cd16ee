"""Standard output and error that may go away: `| head`, a closed terminal, a log on a full disk end no training."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

GONE = (errno.EPIPE, errno.EIO)  # nobody reads it any more


class Steady(io.FileIO):
    """A file descriptor that takes every write; `lost` is the first that failed though somebody could read it."""

    lost: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                self.lost = self.lost or error
            return len(data)


@contextmanager
def steady_output() -> Iterator[list[Steady]]:
    """Inside, `sys.stdout` and `sys.stderr` are `Steady`, where they are those of the process; yields these."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    raws = []
    for name, stream in streams.items():
        if stream is None:  # closed by `>&-`
            setattr(sys, name, open(os.devnull, "w"))
        elif stream is getattr(sys, f"__{name}__"):  # else somebody's who has put it there
            stream.flush()
            raws.append(Steady(stream.fileno(), "wb", closefd=False))
            setattr(sys, name, rewrapped(stream, raws[-1]))
    try:
        yield raws
    finally:
        for name, stream in streams.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)


def rewrapped(stream: io.TextIOWrapper, raw: Steady) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # `python -u`
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
