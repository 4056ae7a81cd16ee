"""GenEval 2 (arXiv 2512.16853): 800 prompts of 3 to 10 atoms, each atom a question, judged softly (Soft-TIFA).

Format and score by github.com/facebookresearch/GenEval2, evaluation.py and soft_tifa_analysis.py of 2025-12-18.
"""

from __future__ import annotations

import math
from typing import Any

from uae_lightning.evaluation.benchmark_files import read_rows, rows_of_json, text_in
from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.judge_answers import Marks, ProbabilityOf
from uae_lightning.evaluation.judged_prompts import Benchmark, JudgedPrompt, Point, Request
from uae_lightning.evaluation.statistics import Items

NAME = "GenEval 2"
WHERE = "geneval2_data.jsonl of github.com/facebookresearch/GenEval2 (CC BY-NC 4.0)"
FORM = (
    'a line has "prompt", "atom_count", "vqa_list" with pairs such as ["Are the cows plastic?", "Yes"], and as many '
    '"skills"'
)
ASKED = "{question} Answer in one word."
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ARITHMETIC = "soft_tifa_am"
ATOMS = "atoms_"  # before their number


class GenEval2(Benchmark):
    """A question's mark is the probability of its answer by the judge's first token, small letters and capitals alike;
    of a number also as a digit. The overall figure is Soft-TIFA GM: the geometric mean of a picture's marks, then the
    mean over pictures. `soft_tifa_am` has the arithmetic mean; a skill (`object`, `attribute`, `count`, `position`,
    `verb`) the mean of its marks; `atoms_7` GM of prompts with seven atoms.

    Published figures are by Qwen3-VL-8B-Instruct, one picture of each prompt. An endpoint gives the most probable words
    alone: where the right one is not among them its mark is 0, where the code has some 1e-7, which makes GM a little
    lower here. `more: {top_logprobs: 100}` of the judge asks for more of them (vLLM: --max-logprobs 100).

    Args:
        path: geneval2_data.jsonl.
    """

    title = "GenEval 2, Soft-TIFA"

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> list[JudgedPrompt]:
        return read_rows(rows_of_json(self.path, NAME, WHERE), prompt_of, NAME, FORM)

    def score(self, prompt: JudgedPrompt, marks: Marks) -> float:
        return math.prod(marks) ** (1 / len(marks))

    def values(self, prompt: JudgedPrompt, marks: Marks) -> Items:
        found = super().values(prompt, marks)
        return {OVERALL: found.pop(OVERALL), ARITHMETIC: [sum(marks) / len(marks)], **found}


def prompt_of(row: dict[str, Any]) -> JudgedPrompt:
    pairs, skills, atoms = row["vqa_list"], row["skills"], row["atom_count"]
    if not pairs or len(pairs) != len(skills) or not isinstance(atoms, int):
        raise ValueError("vqa_list and skills are not as long as each other, or atom_count is no number")
    asked = []
    for question, answer in pairs:
        if not isinstance(question, str) or not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"no question and answer: {question!r}, {answer!r}")
        asked.append(Request(ASKED.format(question=question), ProbabilityOf(accepted(answer))))
    points = [Point((text_in({"skill": skill}, "skill"),)) for skill in skills]
    return JudgedPrompt(text_in(row, "prompt"), tuple(asked), tuple(points), (f"{ATOMS}{atoms}",))


def accepted(answer: str) -> tuple[str, ...]:
    """The words that stand for an answer: `seven` and `7`."""
    word = answer.strip().lower()
    return (word, str(NUMBERS.index(word) + 1)) if word in NUMBERS else (word,)
