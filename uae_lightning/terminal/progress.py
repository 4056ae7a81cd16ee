"""Progress on standard error: a bar on a terminal, elsewhere (a log file) a plain line now and then."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

SECONDS = 10.0  # between two lines where the output is not a terminal
Item = TypeVar("Item")


class Progress(tqdm):
    """How much of `total` is done, the time left, and figures by `set_postfix`.

    Into a file it writes no bars but lines: the first, then one at most every 10 seconds, and the last. tqdm's own
    clock is that of the wall, which may jump; this one does not.

    Args:
        total: None where nobody knows.
        what: is counted, such as "picture".
        name: stands before the bar.
        done: what an earlier process has done, which took no time in this one.
        passing: the bar goes when it ends, and is silent where there is no terminal: of a part of something longer.
    """

    def __init__(
        self, total: int | None, what: str, name: str | None = None, done: int = 0, *, passing: bool = False
    ) -> None:
        self.terminal = sys.stderr.isatty()
        self.printed, self.silent = -SECONDS, passing
        super().__init__(
            total=total, initial=done, unit=what, desc=name, leave=not passing, smoothing=0.05, dynamic_ncols=True,
            file=sys.stderr if self.terminal else io.StringIO(), mininterval=0.2 if self.terminal else 0.0,
        )  # fmt: skip
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        if not self.terminal and (self.n == self.total or time.monotonic() - self.printed >= SECONDS):
            self.line()
        return shown

    def set_postfix(self, *args: Any, **figures: Any) -> None:
        super().set_postfix(*args, **figures, refresh=self.terminal)

    def line(self) -> None:
        """The state as a line of a log."""
        if not self.silent:
            self.printed = time.monotonic()
            print(self, file=sys.stderr, flush=True)


def watched(
    items: Iterable[Item], total: int | None, what: str, name: str | None = None, done: int = 0
) -> Iterator[Item]:
    """The same items, under a bar that goes when they end; without a terminal nothing is shown."""
    with Progress(total, what, name, done, passing=True) as bar:
        for item in items:
            yield item
            bar.update()


def say(text: str) -> None:
    """A line on standard output that leaves the bars whole."""
    with tqdm.external_write_mode():
        print(text, flush=True)


def time_left(spent: float, done: int, total: int) -> str:
    """Of `total`, where `done` took `spent` seconds: "about 3 min left"."""
    seconds = spent / done * (total - done)
    minutes, hours = seconds / 60, seconds / 3600
    amount = f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
    return f"about {amount} left"
