"""What became of the pictures: counts that add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from uae_lightning.prepare.caption_reading import Row


@dataclass
class Counts:
    """seen = kept + dropped + skipped; `converted` and `rewritten` are of the kept."""

    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    converted: Counter[str] = field(default_factory=Counter)  # by what was done; one picture can have several
    rewritten: int = 0  # pictures whose file is not the original
    control: int = 0  # captions that hold control tokens of the captioner, as text
    words: Counter[int] = field(default_factory=Counter)  # captions by their length

    def add(self, row: Row) -> None:
        if row["status"] == "kept":
            self.kept += 1
            self.converted.update(row.get("converted", ()))
            self.rewritten += row.get("rewritten", False)
            self.control += row.get("control", False)
            self.words[row["words"]] += 1
        else:
            (self.dropped if row["status"] == "dropped" else self.skipped)[row["reason"]] += 1

    def check(self, total: int | None, listed: dict[str, int]) -> None:
        """Raises RuntimeError where a picture was lost or counted twice.

        Args:
            total: pictures of the source, where that is known.
            listed: pictures of each status in the lists that were written.
        """
        parts = {"kept": self.kept, "dropped": self.dropped.total(), "skipped": self.skipped.total()}
        if self.seen != sum(parts.values()) or parts != listed or total not in (None, self.seen):
            raise RuntimeError(f"counts do not add up: {self.seen} of {total} seen, {parts} counted, {listed} listed")

    def as_dict(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            "skipped": dict(self.skipped.most_common()),
            "converted": dict(self.converted.most_common()),
            "rewritten": self.rewritten,
            "control_tokens": self.control,
            "words": self.length_of_captions(),
        }

    def length_of_captions(self) -> dict[str, float] | None:
        if not self.kept:
            return None
        lengths, passed = sorted(self.words), 0
        for median in lengths:
            passed += self.words[median]
            if 2 * passed >= self.kept:
                break
        mean = sum(length * count for length, count in self.words.items()) / self.kept
        return {"least": lengths[0], "median": median, "mean": round(mean, 1), "most": lengths[-1]}

    def table(self) -> str:
        lines = [("pictures seen", self.seen), ("  kept", self.kept)]
        for name, reasons in (("dropped", self.dropped), ("skipped", self.skipped)):
            lines.append((f"  {name}", reasons.total()))
            lines += [(f"    {reason}", count) for reason, count in reasons.most_common()]
        if self.control:
            lines.append(("kept with control tokens as text", self.control))
        if self.rewritten:
            lines.append(("kept as a converted file", self.rewritten))
        lines += [(f"  {what}", count) for what, count in self.converted.most_common()]
        width = max(len(name) for name, _ in lines) + 2
        text = [f"{name:{width}}{count:>9,}  {count / max(self.seen, 1):6.1%}" for name, count in lines]
        if words := self.length_of_captions():
            text.append("words in a caption: {least} to {most}, median {median}, mean {mean}".format(**words))
        return "\n".join(text)
