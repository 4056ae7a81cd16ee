"""What was left out of a data set, counted by reason and listed file by file; too much of it stops the run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from uae_lightning.data.images import BadFile
from uae_lightning.usage import UsageError

JUDGED_AFTER = 100  # samples: fewer say little (of 20 with 1% bad files, every sixth draw has more than 5%)
FILE = "skipped.jsonl"
Name = tuple[str, str]  # source, key


@dataclass
class Tally:
    """Of samples read: kept + held_out + len(skipped) is their number."""

    kept: int = 0
    held_out: int = 0  # pictures of the validation set that training came across
    converted: Counter[str] = field(default_factory=Counter)  # of the kept; one picture can have several
    skipped: list[dict[str, str]] = field(default_factory=list)  # source, key, reason, detail

    def skip(self, source: str, key: str, error: BadFile) -> None:
        self.skipped.append({"source": source, "key": key, "reason": error.reason, "detail": error.detail[:300]})

    def taken(self) -> Tally:
        """What was counted so far; counting begins anew."""
        counted = replace(self)
        vars(self).update(vars(Tally()))
        return counted


class SkippedFiles:
    """Adds up the tallies of one process's workers and appends to the list of all processes, each file once.

    Args:
        limit: share of unusable files above which `add` raises, once 100 samples were read; 0 allows none, ever.
        source: what the error calls the data set.
        file: the list, JSON lines; None keeps none.
    """

    def __init__(self, limit: float, source: str, file: Path | None) -> None:
        self.limit, self.source, self.file = limit, source, file
        self.read, self.kept, self.held_out, self.skips = 0, 0, 0, 0
        self.converted: Counter[str] = Counter()
        self.reasons = self._listed()

    def _listed(self) -> dict[Name, str]:
        lines = self.file.read_text().splitlines() if self.file and self.file.exists() else []
        return _reasons([json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")])

    def add(self, tally: Tally) -> None:
        """Raises UsageError where more than `limit` of the samples were skipped."""
        self.kept, self.held_out = self.kept + tally.kept, self.held_out + tally.held_out
        self.skips += len(tally.skipped)
        self.read += tally.kept + tally.held_out + len(tally.skipped)
        self.converted += tally.converted
        self._list([row for row in tally.skipped if (row["source"], row["key"]) not in self.reasons])
        if (self.read >= JUDGED_AFTER or not self.limit) and self.skips > self.limit * self.read:
            raise UsageError(
                f"{self.skips} of {self.read} pictures read from {self.source} cannot be used, more than "
                f"data.init_args.max_skipped ({self.limit:g}) allows: {self.by_reason()}. Repair or remove them"
                f"{f' ({self.file} lists them)' if self.file else ''}, or raise data.init_args.max_skipped"
            )

    def _list(self, rows: list[dict[str, str]]) -> None:
        self.reasons |= _reasons(rows)
        if rows and self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:  # other ranks append to it as well
                file.write("".join(json.dumps(row) + "\n" for row in rows))

    def by_reason(self) -> str:
        counts = Counter(self.reasons.values())
        return ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())

    def summary(self) -> str:
        """One line for the end of a run."""
        if self.file:  # rows of the other processes too
            self.reasons |= self._listed()
        text = f"{self.source}: {self.read} read = {self.kept} used + {self.held_out} held out + {self.skips} skipped"
        if self.converted:
            text += f"; converted: {', '.join(f'{what} ({count})' for what, count in self.converted.most_common())}"
        if self.reasons:
            text += f"; files left out in the whole run: {self.by_reason()}{f', see {self.file}' if self.file else ''}"
        return text


def _reasons(rows: list[dict[str, str]]) -> dict[Name, str]:
    return {(row["source"], row["key"]): row["reason"] for row in rows}
