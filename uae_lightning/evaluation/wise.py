"""WISE (arXiv 2503.07265): prompts that ask for knowledge of the world, judged beside an explanation of what they mean.

Formats and scores by github.com/PKU-YuanGroup/WISE of 2026-04-25: the first WISE in WISE_legacy/ (Calculate.py), and
WISE_Verified (calculate_verified.py), which takes its place since 2026-04-19. The repository names no licence: its
files are read from where you put them, and the words that the judge is asked in are ours unless `protocol` names its
own.
"""

from __future__ import annotations

from typing import Any

from uae_lightning.evaluation.benchmark_files import (
    figure_name,
    messages_in,
    read_rows,
    rows_of_json,
    text_in,
)
from uae_lightning.evaluation.judge_answers import Marks, Rubric
from uae_lightning.evaluation.judged_prompts import Benchmark, JudgedPrompt, Point, Request
from uae_lightning.usage import UsageError

FORM = 'an entry has "Prompt", "Explanation" and "Category"'
CATEGORIES = {"cultural_knowledge": "culture", "physical_knowledge": "physics"}  # the others go by their own name
WEIGHTS = {"Consistency": 0.7, "Realism": 0.2, "Aesthetic Quality": 0.1}
FUNCTION = "build_evaluation_messages"  # of the code that asks
ASKED_FOR_THREE = """\
A model drew this picture of a prompt whose meaning takes knowledge of the world.

The prompt: {Prompt}
What it means, and what a right picture shows: {Explanation}

Give three marks, each for itself, and be strict:
Consistency: 2 where all that the prompt means is shown and right, 1 where some of it is, 0 where the main thing is \
missing or wrong.
Realism: 2 where it could be a photograph, 1 where something about it is odd, 0 where it is plainly artificial or \
impossible.
Aesthetic Quality: 2 where it is beautiful and well composed, 1 where it is ordinary, 0 where it is poor.

Answer in three lines and with nothing else:
Consistency: N
Realism: N
Aesthetic Quality: N"""
ASKED_FOR_ONE = """\
A model drew this picture of a prompt whose meaning takes knowledge of the world.

The prompt: {Prompt}
What it means, and what a right picture shows: {Explanation}

Is the picture right? 1 where it shows what the prompt means, with all that matters to it, clearly enough to see that; \
0 where something that matters is missing or wrong, where it shows the prompt's words and not their meaning, where it \
is too broken to tell, and where you doubt it. Beauty does not count.

Answer in one line and with nothing else:
Score: N"""


class WISE(Benchmark):
    """The first WISE. A picture's WiScore is .7 of its consistency, .2 of its realism and .1 of its aesthetic quality,
    0 to 2 each and halved. The overall figure is the mean over pictures: with all 1,000 prompts the published one,
    whose weights (.4 culture, .167 time, .133 space, .1 each of biology, physics and chemistry) are shares of prompts.

    Published figures are by gpt-4o-2024-05-13, one picture of each prompt.

    Args:
        path: cultural_common_sense.json, spatio-temporal_reasoning.json and natural_science.json of WISE_legacy/data.
        protocol: WISE_legacy/gpt_eval.py: the judge is asked in its words, which are read and never run; None: in ours,
            and figures compare with each other alone.
    """

    title = "WISE"
    reading = Rubric(tuple(WEIGHTS), 2)
    kinds = tuple(map(figure_name, WEIGHTS))
    asked, data, code = ASKED_FOR_THREE, "WISE_legacy/data", "WISE_legacy/gpt_eval.py"

    def __init__(self, path: str | list[str], protocol: str | None = None) -> None:
        self.paths, self.protocol = [path] if isinstance(path, str) else path, protocol
        self.system, self.words = "", self.asked

    def read(self) -> list[JudgedPrompt]:
        if self.protocol is not None:
            self.system, self.words = messages_of(self.protocol, self.title, self.source(self.code))
        where = self.source(self.data)
        return [
            prompt
            for path in self.paths
            for prompt in read_rows(rows_of_json(path, self.title, where), self.prompt_of, self.title, FORM)
        ]

    @staticmethod
    def source(place: str) -> str:
        return f"{place} of github.com/PKU-YuanGroup/WISE"

    def prompt_of(self, row: dict[str, Any]) -> JudgedPrompt:
        text, category = text_in(row, "Prompt"), figure_name(text_in(row, "Category"))
        words = self.words.replace("{Prompt}", text).replace("{Explanation}", text_in(row, "Explanation"))
        request = Request(words, self.reading, self.system, images_last=bool(self.system))
        points = tuple(Point((kind,)) for kind in self.kinds) or (Point(),)
        return JudgedPrompt(text, (request,), points, (CATEGORIES.get(category, category),))

    def score(self, prompt: JudgedPrompt, marks: Marks) -> float:
        return sum(weight * mark for weight, mark in zip(WEIGHTS.values(), marks, strict=True))


class WISEVerified(WISE):
    """WISE_Verified: a picture is right or not. The overall figure is the mean over pictures: with all 1,000 prompts
    the published one, whose weights (.4 culture, .12 each of the other five) are shares of prompts.

    Published figures are by Qwen3.5-35B-A3B on vLLM, one picture of each prompt, its thinking off: give the judge
    `more: {chat_template_kwargs: {enable_thinking: false}}`.

    Args:
        path: data_verified/merge.json.
        protocol: vllm_eval.py: the judge is asked in its words, which are read and never run; None: in ours, and
            figures compare with each other alone.
    """

    title = "WISE_Verified"
    reading = Rubric(("Score",), 1)
    kinds = ()
    asked, data, code = ASKED_FOR_ONE, "data_verified/merge.json", "vllm_eval.py"

    def score(self, prompt: JudgedPrompt, marks: Marks) -> float:
        return marks[0]


def messages_of(protocol: str, name: str, where: str) -> tuple[str, str]:
    """The two messages that WISE's own code sends: system and user."""
    texts = messages_in(protocol, FUNCTION, name, where)
    if len(texts) != 2 or not all(mark in texts[1] for mark in ("{Prompt}", "{Explanation}")):
        raise UsageError(f"{name}: {FUNCTION} in {protocol} is none with a system and a user message: take {where}")
    return texts[0], texts[1]
