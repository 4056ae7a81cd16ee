"""Which part of the data one of several machines or cards prepares."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """The Ith of N parts of the data, counted from 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> Part:
        """Of an option such as --part 2/8."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/8, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """At the end of names of files; empty where there is one part only."""
        return f"-{self.number}of{self.of}" if self.of > 1 else ""
