"""Whether captions are still in the language of the scenes."""

from __future__ import annotations

import re

from uae_lightning.evaluation.language import Language
from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject
from uae_lightning.scenes.captions import COUNTS, PLURALS, RELATIONS, parse_caption
from uae_lightning.scenes.scene import BACKGROUNDS, COLORS, POSITIONS, SIZES


class SceneLanguage(Language):
    """What `Language` measures, and for each caption:

    grammatical: share of the clauses that are of a form in which `scenes.captions` writes.
    parses: 1 where each clause is of such a form, or the parser recognises something in it. The parser reads bags of
        words: this allows new forms, but lets scrambled words pass that `grammatical` does not.
    """

    neither = (*Language.neither, "grammatical")

    def measure(self, subject: Subject) -> Items:
        return super().measure(subject) | grammar(subject.round_trip.captions.texts)

    def groups(self, figures: Figures) -> list[Group]:
        length, health, perplexity = super().groups(figures)
        rows = (Row("parses", "every clause is understood"), Row("grammatical", "clauses of a known form"))
        return [length, Group(health.title, health.text, (*rows, *health.rows)), perplexity]


def grammar(texts: list[str]) -> Items:
    return {"parses": [float(_parses(text)) for text in texts], "grammatical": [_grammatical(text) for text in texts]}


def _clauses(text: str) -> list[str]:
    return [" ".join(clause.split()) for clause in re.split(r"[.,]", text.lower()) if clause.strip()]


def _parses(text: str) -> bool:
    clauses = _clauses(text)
    return bool(clauses) and all(_FORMS.fullmatch(clause) or not parse_caption(clause).unread for clause in clauses)


def _grammatical(text: str) -> float:
    clauses = _clauses(text)
    return sum(_FORMS.fullmatch(clause) is not None for clause in clauses) / max(len(clauses), 1)


def _one_of(*phrases: str) -> str:
    return f"(?:{'|'.join(phrases)})"


def _forms() -> re.Pattern[str]:
    """Every clause that `scenes.captions.write_caption` can write; number and verb need not agree."""
    ground, count, color = _one_of(*BACKGROUNDS), _one_of(*COUNTS), _one_of(*COLORS)
    name, position = _one_of(*PLURALS, *PLURALS.values()), _one_of(*POSITIONS)
    look = f"(?:{_one_of(*SIZES)} )?(?:{color} )?{name}"
    noun, number = f"{_one_of('a', *COUNTS)} {look}", f"{count} objects?"
    places = f"the {position}(?: and the {position})*"
    forms = (
        ground,
        f"{look}(?: {position})?",
        f"the background is {ground}",
        f"all of it is set on {ground}",
        f"a picture of {_one_of(number, 'a scene')}(?: on {ground})?",
        f"there {_one_of('is', 'are')} {_one_of(number, noun)}",
        f"this scene shows {number}",
        f"(?:at {places} there {_one_of('is', 'are')}|we see) {noun}",
        f"(?:we see )?{noun}(?: {_one_of('is', 'are')})? at {places}",
        f"the {color} {name} is {_one_of(*RELATIONS)} the {color} {name}",
    )
    return re.compile(_one_of(*forms))


_FORMS = _forms()
