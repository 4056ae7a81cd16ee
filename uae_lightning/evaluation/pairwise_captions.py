"""Unified-Bench, protocol P2 (UAE, arXiv 2509.09666): which of two captions of a picture is the better one, by a judge.

The paper's judges give 1 to 10 for comprehensiveness, fluency and insight, and it prints win rates; in which words they
were asked is not known to us, so those below are ours. Judges also prefer places (arXiv 2306.05685, whose authors
count a win only where it comes in both orders): each picture is judged twice, with each caption first once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePath
from typing import Any

import lightning as L
import torch
from torch import Tensor

from uae_lightning.evaluation.benchmark_files import read_rows, rows_of_json, text_in
from uae_lightning.evaluation.judge_answers import Lists, Marks
from uae_lightning.evaluation.judged_prompts import UNREAD, ask, check_read
from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.remote.pictures import as_png
from uae_lightning.rewards.openai_chat import OpenAIChat, Turn
from uae_lightning.types import Captions
from uae_lightning.usage import UsageError

NAME = "PairwiseCaptions"
WHERE = "a JSONL of captions, such as `uae caption` writes"
FORM = 'a line has "image" and "caption"'
CRITERIA = ("comprehensiveness", "fluency", "insight")
READING = Lists((len(CRITERIA), len(CRITERIA)), 1, 10)
WIN, TIE, LOSS, RATE, FIRST, MORE = "win", "tie", "loss", "win_rate", "prefers_first", "more_"
ASKED = """\
Two captions of this picture. Give each whole numbers from 1 to 10 for three things: comprehensiveness (is all that \
matters in the picture there, and nothing that is not), fluency (is it clear, correct language that does not repeat \
itself), insight (does it say what the picture means, beyond a list of what is in it).

First caption:
{first}

Second caption:
{second}

Do not prefer a caption for its place or its length. Answer in two lines and with nothing else:
First: [comprehensiveness, fluency, insight]
Second: [comprehensiveness, fluency, insight]"""


TIED: Marks = [1.0] * 6  # captions that are the same


class PairwiseCaptions(Suite):
    """How often the encoder's caption of a held-out picture is preferred to another one of it.

    A caption wins where the sum of its three numbers is the higher one in both orders, and loses where it is the lower
    one in both; all else is a tie, and so are captions that are the same, of which nobody is asked.

    win, tie, loss: shares of pictures.
    win_rate: wins and half of the ties.
    more_comprehensiveness, more_fluency, more_insight: how much higher its number is, mean of both orders.
    prefers_first: share of pictures of which the judge prefers what it is shown first, whichever that is.
    unread: share of answers that were none; such a picture is a tie.

    Args:
        judge: who sees picture and captions. Figures of different judges do not compare.
        against: a JSONL with "image" and "caption", such as `uae caption` writes, with a caption of each held-out
            picture; it is found by name, with or without folders and suffix. None: those that the encoder before RL
            writes; where no other encoder is measured all are ties.
    """

    about = "whether captions are preferred to others, by a vision-language model"
    lower_is_better = (LOSS, UNREAD)
    neither = (TIE, FIRST)

    def __init__(self, judge: OpenAIChat, against: str | None = None) -> None:
        super().__init__()
        self.judge, self.against = judge, against

    @cached_property
    def others(self) -> dict[str, str] | None:
        """Captions of the file by names, read when they are first asked for; raises UsageError."""
        return None if self.against is None else read_captions(self.against)

    def missing(self, data: L.LightningDataModule) -> str | None:
        self.judge.check()
        _ = self.others  # mistakes in the file are told first
        return None

    def measure(self, subject: Subject) -> Items:
        trip = subject.round_trip
        others = written_before(subject) if self.others is None else self.of(trip.keys)
        return self.compared(trip.originals, trip.captions, others)

    def of(self, keys: Sequence[str]) -> list[str]:
        """Their captions in the file."""
        assert self.others is not None
        found = [next((self.others[name] for name in names_of(key) if name in self.others), None) for key in keys]
        if without := [key for key, text in zip(keys, found, strict=True) if text is None]:
            raise UsageError(
                f"PairwiseCaptions: {self.against} has no caption of {without[0]} ({len(without)} of {len(keys)} held-"
                "out pictures have none): caption all of them, with `uae caption`"
            )
        return [text for text in found if text is not None]

    def compared(self, images: Tensor, captions: Captions, others: Sequence[str]) -> Items:
        """The lists of these pictures [N, 3, H, W]."""
        pairs = list(zip(captions.texts, others, strict=True))
        asked = {row: as_png(images[row]) for row, (own, other) in enumerate(pairs) if own != other}
        turns = [
            (READING, Turn(ASKED.format(first=first, second=second), (image,)))
            for row, image in asked.items()
            for first, second in (pairs[row], pairs[row][::-1])
        ]
        answers = ask(self.judge, turns)
        both = dict(zip(asked, zip(answers[::2], answers[1::2], strict=True), strict=True))
        items: Items = {}
        for row in range(len(pairs)):
            for name, value in verdict(*both.get(row, (TIED, TIED))).items():
                items.setdefault(name, []).append(value)
        if answers:
            check_read([float(answer is None) for answer in answers], self.judge, last=True)
        return items

    def groups(self, figures: Figures) -> list[Group]:
        shares, more = (WIN, TIE, LOSS, RATE, FIRST), tuple(MORE + name for name in CRITERIA)
        rows = [
            tuple(Row(name, name.replace("_", " ")) for name in names if name in figures) for names in (shares, more)
        ]
        text = "both orders; against " + (self.against or "the encoder before RL")
        return [
            Group("Captions preferred by a judge", text, rows[0]),
            Group("How much more a judge gives them, of 10", text, rows[1], None),
        ]


def verdict(own_first: Marks | None, other_first: Marks | None) -> dict[str, float]:
    """Values of a picture.

    Args:
        own_first, other_first: numbers of the first caption, then of the second; in the one answer the first caption is
            the encoder's, in the other the second; None where there is none.
    """
    count, read = len(CRITERIA), own_first is not None and other_first is not None
    straight, turned = (own_first or TIED, other_first or TIED) if read else (TIED, TIED)
    more = [
        (straight[i] - straight[count + i] + turned[count + i] - turned[i]) / 2 for i in range(count)
    ]  # of the encoder's
    by_order = [sum(straight[:count]) - sum(straight[count:]), sum(turned[count:]) - sum(turned[:count])]
    win, loss = all(one > 0 for one in by_order), all(one < 0 for one in by_order)
    return {
        WIN: float(win),
        TIE: float(not win and not loss),
        LOSS: float(loss),
        RATE: (1 + win - loss) / 2,
        FIRST: float(by_order[0] > 0 > by_order[1]),
        **{MORE + name: value for name, value in zip(CRITERIA, more, strict=True)},
        UNREAD: ((own_first is None) + (other_first is None)) / 2,
    }


@torch.no_grad()
def written_before(subject: Subject) -> list[str]:
    """Captions of the same pictures by the encoder before RL, as the others are written."""
    model, reference = subject.model, subject.reference
    if reference is None:
        raise ValueError("PairwiseCaptions has no encoder to compare with: name a file of captions with `against`")
    texts: list[str] = []
    for number, batch in enumerate(subject.held_out()):
        images, how = batch.images.to(model.device), vars(model.captioning)
        texts += reference.generate(images, samples=1, seed=subject.seed_of(number), **how).texts
    return texts


# ------------------------------------------------------------------------------------------------ captions of others


def read_captions(path: str) -> dict[str, str]:
    """Captions by the names of their pictures; a name that two pictures share, without folders, is left out.

    Raises:
        UsageError: there is no such file, or it is no JSONL of captions.
    """
    found: dict[str, str] = {}
    shared: set[str] = set()
    for image, caption in read_rows(rows_of_json(path, NAME, WHERE), caption_of, NAME, FORM):
        for name in names_of(image):
            shared |= {name} if found.get(name, caption) != caption else set()
            found[name] = caption
    return {name: caption for name, caption in found.items() if name not in shared}


def caption_of(row: dict[str, Any]) -> tuple[str, str]:
    return text_in(row, "image"), text_in(row, "caption")


def names_of(image: str) -> list[str]:
    """A picture's name as it is, without suffix, and without folders."""
    path = PurePath(image)
    return list(dict.fromkeys([image, str(path.with_suffix("")), path.name, path.stem]))
