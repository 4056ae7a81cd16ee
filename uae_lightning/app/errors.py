"""What a browser is told when something fails: words with a remedy, and no path of this machine."""

from __future__ import annotations

import re
import traceback

import torch

from uae_lightning.files import explained

PATH = re.compile(r"(?<![\w.<])(?:~|[A-Za-z]:)?(?:/[^\s/:;,'\"()\[\]<>]+)+")
UNKNOWN = "something failed that should not: the terminal in which `uae app` runs has the details"
MEMORY = "the machine has not enough memory for this: take fewer steps or candidates, a smaller run, or end other work"


def in_words(error: BaseException) -> str:
    """One message; of an error nobody expects the traceback goes to the terminal."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return MEMORY
    expected = isinstance(error, ValueError | FileNotFoundError | FloatingPointError)
    if (message := explained(error) or (str(error) if expected else None)) is None:
        traceback.print_exception(error)
        return UNKNOWN
    return without_paths(message)


def without_paths(text: str) -> str:
    """Each absolute path is cut down to its last name."""
    return PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)
