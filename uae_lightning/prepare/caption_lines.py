"""Captions as lines of a JSONL, written as they come: a process that was killed goes on with the pictures it lacks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from uae_lightning.data.images import MAX_ASPECT, MIN_SIDE, SUFFIXES, BadFile, read_picture
from uae_lightning.prepare.caption_reading import ahead
from uae_lightning.prepare.caption_set import Captions, seeded
from uae_lightning.prepare.pictures import scaled_down
from uae_lightning.terminal.progress import Progress, say
from uae_lightning.usage import UsageError

Write = Callable[[list[Image.Image], int], list[str]]  # pictures and the number of their batch -> captions
LARGEST = 1_003_520  # pixels that a model of transformers is shown: 1,280 tokens of Qwen2.5-VL
SHOWN = 60  # characters of the last caption beside the bar


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """Pictures, and all that lie in folders and below them, each once.

    Raises:
        UsageError: there is no such file or folder, or none in it is a picture.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.suffix.lower().lstrip(".") in SUFFIXES)
            if not files:
                raise UsageError(
                    f"{place} has no pictures: a picture's name ends in one of {', '.join(sorted(SUFFIXES))}"
                )
            found += files
        elif place.is_file():
            found.append(place)
        else:
            raise UsageError(f"{place} does not exist: name a picture, such as a PNG or JPEG file, or a folder of them")
    return list(dict.fromkeys(found))


@dataclass
class CaptionLines:
    """What goes where.

    Args:
        pictures: to be captioned, in this order.
        to: the JSONL; None is standard output.
        by: who writes the captions and how, in a word that other weights or settings do not share.
        batch_size: pictures captioned at a time. Batches are those of the whole list, also where some are done: random
            captions come out as if nothing had been stopped.
    """

    pictures: list[Path]
    to: Path | None
    by: str
    batch_size: int
    broken: dict[Path, str] = field(default_factory=dict)  # and why

    def name(self, picture: Path) -> str:
        """As the JSONL calls it: relative to the file, so that `uae fit` finds it."""
        return str(picture) if self.to is None else os.path.relpath(picture.resolve(), self.to.parent.resolve())

    def done(self) -> set[str]:
        """Names of pictures that have a caption; half a line at the end, of a process that was killed, is cut off.

        Raises:
            UsageError: the file is none of this command, or its captions are by somebody else.
        """
        if self.to is None or not self.to.exists():
            return set()
        content = self.to.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        found = set()
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                name, by = row["image"], row["by"]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"--to {self.to}, line {number} is not of `uae caption`: name another file, or --overwrite"
                ) from error
            if by != self.by:
                raise UsageError(
                    f"--to {self.to} holds captions by {by}, these would be by {self.by}: --overwrite starts it again, "
                    "--to names another file"
                )
            found.add(name)
        if whole != content:
            os.truncate(self.to, len(whole))
        return found

    def run(self, write: Write) -> int:
        """Writes what is lacking; returns how many captions there are in the end."""
        done = self.done()
        batches = [self.pictures[i : i + self.batch_size] for i in range(0, len(self.pictures), self.batch_size)]
        there = sum(self.name(picture) in done for picture in self.pictures)
        with Progress(len(self.pictures), "picture", "caption", done=there) as bar:
            for number, paths, images in ahead(self.opened(batches, done)):
                captions = write(images, number) if images else []
                rows = [(path, text) for path, text in zip(paths, captions, strict=True) if self.name(path) not in done]
                self.add(rows)
                if rows:
                    bar.set_postfix_str(rows[-1][1][:SHOWN], refresh=False)
                bad = [path for path in batches[number] if path in self.broken]
                bar.update(len(rows) + len(bad))
                there += len(rows)
        return there

    def check(self) -> None:
        """Raises ValueError where files were no pictures and have no caption."""
        if self.broken:
            first = "; ".join(f"{path} ({why})" for path, why in list(self.broken.items())[:3])
            raise ValueError(
                f"{len(self.broken)} of {len(self.pictures)} files cannot be read as pictures and have no caption: "
                f"{first}; mend or remove them, and the same command tries again"
            )

    def opened(self, batches: list[list[Path]], done: set[str]) -> Iterator[tuple[int, list[Path], list[Image.Image]]]:
        """(its number, pictures that can be read, their pixels) of each batch that lacks a caption."""
        for number, paths in enumerate(batches):
            if all(self.name(path) in done for path in paths):
                continue
            read = {}
            for path in paths:
                try:
                    read[path] = read_picture(path, min_side=MIN_SIDE, max_aspect=MAX_ASPECT).image
                except BadFile as error:
                    self.broken[path] = str(error)
            yield number, list(read), list(read.values())

    def add(self, rows: list[tuple[Path, str]]) -> None:
        lines = [
            json.dumps({"image": self.name(p), "caption": text, "by": self.by}, ensure_ascii=False) for p, text in rows
        ]
        if self.to is None:
            for line in lines:
                say(line)
        elif lines:
            with self.to.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())


def written_by(model: Captions, seed: int) -> Write:
    """Captions by a model of transformers, the same for the same seed and number of a batch."""

    def write(images: list[Image.Image], number: int) -> list[str]:
        with seeded(seed, number):
            return [caption.text for caption in model([scaled_down(image, LARGEST) for image in images])]

    return write
