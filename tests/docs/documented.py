"""What README.md, docs/*.md and the notebooks say: their commands, links and names."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
COMMENT = re.compile(r"\s{3,}(?![\s-]).*")  # what follows a command on its line


def written(page: Path) -> str:
    """Its text, lines that end in a backslash joined."""
    return re.sub(r"\s*\\\n\s*", " ", page.read_text())


def lines_of_code(page: Path) -> list[str]:
    """Indented by four spaces or more, or fenced; without what is a comment."""
    text = re.sub(r"^```\w*\n(.*?)^```", lambda match: re.sub("^", "    ", match[1], flags=re.M), written(page),
                  flags=re.MULTILINE | re.DOTALL)  # fmt: skip
    return [COMMENT.sub("", line.strip()) for line in text.splitlines() if line.startswith("    ")]


def spans_of_code(page: Path) -> list[str]:
    """`...` in a sentence, over the ends of lines too."""
    text = re.sub(r"^    .*$", "", written(page), flags=re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands_in(lines: list[str]) -> list[list[str]]:
    """Words behind `uae` of those that call it; what begins with `small$` was run, with files that are not here."""
    commands = []
    for line in lines:
        for part in line.split(" && "):
            if match := re.match(r"(?:\.venv/bin/)?uae ([a-z].*)", part):
                commands.append(shlex.split(match[1].split(" > ")[0]))
    return commands


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def calls_of(notebook: Path) -> list[list[str]]:
    """The lists that a notebook calls `main` with; an f-string stands for 2."""
    calls = []
    for node in (node for cell in code_of(notebook) for node in ast.walk(ast.parse(cell))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main":
            calls.append([word_of(word) for word in node.args[0].elts])
    return calls


def word_of(word: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(word, ast.Constant):
        return word.value
    return "".join(part.value if isinstance(part, ast.Constant) else "2" for part in word.values)
