"""DPG-Bench (ELLA, arXiv 2403.05135): long prompts, each with questions that depend on each other.

Format and score by github.com/TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py of 2024-07-17 ("DPG code" below).
"""

from __future__ import annotations

import re
from typing import Any

from uae_lightning.evaluation.benchmark_files import figure_name, read_rows, rows_of_csv, text_in
from uae_lightning.evaluation.judge_answers import Marks, YesNo
from uae_lightning.evaluation.judged_prompts import Benchmark, JudgedPrompt, Point, Request
from uae_lightning.usage import UsageError

NAME = "DPG-Bench"
WHERE = "dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA"
FORM = (
    "a row has item_id, text, proposition_id, dependency (numbers of other rows of the item, or 0), tuple "
    "(`entity - whole (...)`) and question_natural_language"
)
ASKED = "{question} Answer yes or no."


class DPGBench(Benchmark):
    """A picture's score is the share of its questions that are answered with yes; one whose parent is not counts as no,
    and so do the questions that depend on it. Figures by category (`entity`, `attribute`, `relation`, `global`,
    `other`) are shares of all questions, whatever their parents (DPG code).

    Published figures are by mPLUG-large, four pictures of each prompt. The code leaves out the first row of its file,
    a question that others depend on; here it counts.

    Args:
        path: dpg_bench.csv.
    """

    title = NAME
    drawings_each = 4

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> list[JudgedPrompt]:
        rows = read_rows(rows_of_csv(self.path, NAME, WHERE), question_of, NAME, FORM)
        return [prompt_of(self.path, item, of_item) for item, of_item in by_item(rows).items()]

    def score(self, prompt: JudgedPrompt, marks: Marks) -> float:
        return sum(counted(prompt, marks)) / len(marks)


def counted(prompt: JudgedPrompt, marks: Marks) -> Marks:
    """The marks, 0 where one of the parents counts 0."""
    known: dict[int, float] = {}

    def mark_of(place: int) -> float:
        if place not in known:
            known[place] = marks[place] if all(map(mark_of, prompt.points[place].parents)) else 0.0
        return known[place]

    return [mark_of(place) for place in range(len(marks))]


# ------------------------------------------------------------------------------------------------------- the file

Row = dict[str, Any]


def question_of(row: dict[str, str]) -> Row:
    numbers = [int(number) for number in text_in(row, "dependency").split(",")]
    return {
        "item": text_in(row, "item_id"),
        "text": (row["text"] or "").strip(),  # of an item's later rows it may be missing
        "number": int(row["proposition_id"]),
        "parents": [number for number in numbers if number],
        "kind": figure_name(re.split(r"[-(]", text_in(row, "tuple"))[0]),
        "question": text_in(row, "question_natural_language"),
    }


def by_item(rows: list[Row]) -> dict[str, list[Row]]:
    """In the order of their first rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["item"], []).append(row)
    return found


def prompt_of(path: str, item: str, rows: list[Row]) -> JudgedPrompt:
    text = next((row["text"] for row in rows if row["text"]), "")
    if not text:
        raise UsageError(f"{NAME}: {path}, item {item} has no text: {FORM}")
    places = {row["number"]: place for place, row in enumerate(rows)}
    if len(places) < len(rows) or any(parent not in places for row in rows for parent in row["parents"]):
        raise UsageError(
            f"{NAME}: {path}, item {item}: two rows of one proposition_id, or a dependency that is none of them: {FORM}"
        )
    points = [Point((row["kind"],), tuple(places[parent] for parent in row["parents"])) for row in rows]
    if circular(points):
        raise UsageError(f"{NAME}: {path}, item {item}: questions that depend on each other in a circle: {FORM}")
    asked = [Request(ASKED.format(question=row["question"]), YesNo()) for row in rows]
    return JudgedPrompt(text, tuple(asked), tuple(points))


def circular(points: list[Point]) -> bool:
    left = dict(enumerate(points))
    while free := [place for place, point in left.items() if not {*point.parents} & left.keys()]:
        for place in free:
            del left[place]
    return bool(left)
