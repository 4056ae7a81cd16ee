"""Small files of ours in the formats of benchmarks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

DPG_HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
DPG = [
    ("a", "A red cup on a table.", 1, "0", "entity - whole (cup)", "Is there a cup?"),
    ("a", "A red cup on a table.", 2, "1", "attribute - color (cup, red)", "Is the cup red?"),
    ("a", "A red cup on a table.", 3, "0", "entity - whole (table)", "Is there a table?"),
    ("a", "", 4, "1, 3", "relation - spatial (cup, table, on)", "Is the cup on the table?"),
    ("b", "Rain.", 1, "0", "global - (rain)", "Does it rain?"),
]  # item, text, number, dependency, tuple, question


def write_dpg(path: Path, rows: list[tuple] = DPG) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(DPG_HEAD.split(","))
        writer.writerows([item, text, "", number, needs, "", "", about, asked]
                         for item, text, number, needs, about, asked in rows)  # fmt: skip
    return path


def write_geneval2(path: Path) -> Path:
    rows = [
        {
            "prompt": "four red dogs on a box",
            "atom_count": 5,
            "vqa_list": [
                ["How many dogs are in the image?", "four"],
                ["Are the dogs red?", "Yes"],
                ["Is there a box in the image?", "Yes"],
            ],
            "skills": ["count", "attribute", "object"],
        },
        {
            "prompt": "two green birds",
            "atom_count": 3,
            "vqa_list": [["How many birds are in the image?", "two"], ["Are the birds green?", "Yes"]],
            "skills": ["count", "attribute"],
        },
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_wise(path: Path) -> Path:
    rows = [
        ("The fruit that fell on Newton", "This is an apple", "Physical Knowledge"),
        ("What bees make", "This is honey", "Biology"),
        ("A tree in autumn", "Its leaves are red or yellow", "Biology"),
    ]
    entries = [
        {"Prompt": text, "Explanation": why, "Category": kind, "Subcategory": "", "prompt_id": number}
        for number, (text, why, kind) in enumerate(rows, 1)
    ]
    path.write_text(json.dumps(entries))
    return path


def write_unigenbench(path: Path, language: str = "en") -> Path:
    rows = [
        ("A pair of owls in ink", {"Style": "ink", "Attribute - Quantity": "a pair of owls"}),
        ("A wooden fish", {"Attribute - Material": "wooden", "Style": "any", "Action - Animal": "none"}),
        ("A tin horse runs", {"Attribute - Material": "tin", "Action - Animal": "runs"}),
    ]
    keys = ("Testpoints", "Testpoint Description") if language == "en" else ("考点", "考点对应描述")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", f"prompt_{language}", f"sub_dims_{language}"])
        writer.writerows(
            [number, text, json.dumps(dict(zip(keys, ([*points], [*points.values()]), strict=True)))]
            for number, (text, points) in enumerate(rows)
        )
    return path


def write_wise_code(path: Path) -> Path:
    """As the benchmark's own code looks, with words of ours; running it would end the test."""
    path.write_text(
        "raise SystemExit\n"
        "def build_evaluation_messages(row, image):\n"
        "    return [{'role': 'system', 'content': [{'type': 'text', 'text': 'You judge.'}]},\n"
        "            {'role': 'user', 'content': [{'type': 'text', 'text': f'''P: {row['Prompt']}\n"
        "E: {row['Explanation']}\nthree lines'''}, {'type': 'image_url', 'image_url': {'url': f'{image}'}}]}]\n"
    )
    return path


def write_unigenbench_code(path: Path) -> Path:
    meanings = {"Style": "how it is drawn", "Attribute - Quantity": "how many", "Attribute - Material": "of what"}
    meanings["Action - Animal"] = "what animals do"
    path.write_text(
        "raise SystemExit\n"
        + "".join(
            f"EXPLANATION_DICT_{language} = {meanings!r}\n"
            f"SYSTEM_PROMPT_{language}_TEMPLATE = 'Q {{prompt}} | {{testpoint}} | {{explanation}} | "
            "{test_explanation}'\n"
            for language in ("EN", "ZH")
        )
    )
    return path
