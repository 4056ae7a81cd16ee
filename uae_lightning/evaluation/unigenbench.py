"""UniGenBench (arXiv 2508.20751, 2510.18701): 600 prompts with test points of ten dimensions.

Format and score by github.com/CodeGoat24/UniGenBench, eval/src/eval_common.py of 2026-06-07; its data are CC BY 4.0, of
its code no licence is named: it is read from where you put it, and the words that the judge is asked in are ours unless
`protocol` names its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from uae_lightning.evaluation.benchmark_files import constants_of, figure_name, read_rows, rows_of_csv, text_in
from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.judge_answers import Lists, Marks
from uae_lightning.evaluation.judged_prompts import Benchmark, JudgedPrompt, Point, Request
from uae_lightning.evaluation.statistics import Items, Statistic

NAME = "UniGenBench"
WHERE = "data/test_prompts_en.csv of github.com/CodeGoat24/UniGenBench"
CODE = "eval/src/eval_common.py of github.com/CodeGoat24/UniGenBench"
FORM = (
    'a row has index, prompt_en and sub_dims_en: JSON with "Testpoints" and as many "Testpoint Description" (of '
    "Chinese prompts prompt_zh and sub_dims_zh)"
)
KEYS = {"en": ("Testpoints", "Testpoint Description"), "zh": ("考点", "考点对应描述")}
HEADS = {"en": ("Checkpoints Defination", "Checkpoints Description"), "zh": ("考点说明", "考点描述说明")}
ASKED = """\
A model drew this picture of a prompt: {prompt}

Look at these points one by one. Each names what is tested, and the words of the prompt that it is about:
{points}

Say in a sentence for each point what the picture shows. A point holds where you can see that it does; where you \
cannot tell, it does not. End with a list that has a 1 for each point that holds and a 0 for each other, in their \
order, such as [1, 0, 1]: {count} in all."""
Words = Callable[[str, list[str], list[str]], str]


class UniGenBench(Benchmark):
    """All points of a picture are judged in one answer. A figure for each dimension and each of its parts: the share of
    their points that hold (`relationship`, `relationship_comparison`). The overall figure is the plain mean of the
    dimensions, as in the published tables.

    Published figures are by gemini-2.5-pro, four pictures of each prompt; the authors' own judge, to be had as
    CodeGoat24/UniGenBench-EvalModel-qwen3vl-32b-v1, knows the words of `protocol` alone.

    Args:
        path: test_prompts_en.csv, or its long or Chinese siblings. (In test_prompts_en_long.csv of 2026-06-07 the
            prompt of index 509 lacks a comma behind "Grammar - Negation", which is to be put there.)
        protocol: eval/src/eval_common.py: the judge is asked in its words, which are read and never run; None: in ours,
            and figures compare with each other alone.
    """

    title = NAME
    drawings_each = 4

    def __init__(self, path: str, protocol: str | None = None) -> None:
        self.path, self.protocol = path, protocol
        self.dimensions: set[str] = set()

    def read(self) -> list[JudgedPrompt]:
        protocol = self.protocol
        words = {} if protocol is None else {language: words_of(protocol, language) for language in KEYS}

        def prompt(row: dict[str, Any]) -> JudgedPrompt:
            language = "en" if "prompt_en" in row else "zh"
            return self.prompt_of(row, language, words.get(language, in_our_words), images_last=protocol is not None)

        return read_rows(rows_of_csv(self.path, NAME, WHERE), prompt, NAME, FORM)

    def prompt_of(self, row: dict[str, Any], language: str, words: Words, images_last: bool) -> JudgedPrompt:
        text, about = text_in(row, f"prompt_{language}"), json.loads(row[f"sub_dims_{language}"])
        points, told = (about[key] for key in KEYS[language])
        if not points or len(points) != len(told) or not all(isinstance(one, str) for one in (*points, *told)):
            raise ValueError(f"{len(points)} test points and {len(told)} descriptions, or some are no texts")
        kinds = [(figure_name(point.split("-", 1)[0]), figure_name(point)) for point in points]
        self.dimensions |= {dimension for dimension, _ in kinds}
        request = Request(words(text, points, told), Lists((len(points),), 0, 1), images_last=images_last)
        return JudgedPrompt(text, (request,), tuple(Point(tuple(dict.fromkeys(of))) for of in kinds))

    def score(self, prompt: JudgedPrompt, marks: Marks) -> float:
        return sum(marks) / len(marks)

    def values(self, prompt: JudgedPrompt, marks: Marks) -> Items:
        return {name: values for name, values in super().values(prompt, marks).items() if name != OVERALL}

    def statistics(self, items: Items) -> dict[str, Statistic]:
        lists = tuple(sorted(name for name in self.dimensions if len(items.get(name, ())) > 1))
        return {OVERALL: Statistic(lists, "tasks")} if lists else {}


def in_our_words(text: str, points: list[str], told: list[str]) -> str:
    lines = [f"{number}. {point}: {one}" for number, (point, one) in enumerate(zip(points, told, strict=True), 1)]
    return ASKED.format(prompt=text, points="\n".join(lines), count=len(points))


def words_of(protocol: str, language: str) -> Words:
    """As UniGenBench's own code asks."""
    template, meanings = f"SYSTEM_PROMPT_{language.upper()}_TEMPLATE", f"EXPLANATION_DICT_{language.upper()}"
    constants = constants_of(protocol, (template, meanings), NAME, CODE)

    def words(text: str, points: list[str], told: list[str]) -> str:
        parts = ([constants[meanings][point] for point in points], told)
        lists = [
            f"{head}:\u300c"
            + "".join(f"\n{point}: {one}" for point, one in zip(points, part, strict=True))
            + "\n\u300d"
            for head, part in zip(HEADS[language], parts, strict=True)
        ]
        return constants[template].format(
            prompt=text, testpoint=points, explanation=lists[0], test_explanation=lists[1]
        )

    return words
