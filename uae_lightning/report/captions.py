"""Captions of the same picture along a run, as the page of a study and the report of a run show them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

MARKS = {"**": "b", "~~": "s"}  # in Markdown -> the element in HTML


class CaptionMarker:
    """Captions as they are; data whose facts are known has a subclass that marks them."""

    legend = ""

    def mark(self, captions: Sequence[str], key: str, data: dict[str, Any]) -> list[str]:
        """Captions of one picture, in the order of the run, as Markdown: **bold** what is true and new, ~~struck~~ what
        is not true.

        Args:
            key: the picture's, of its batch.
            data: class_path and init_args of the data it comes from.
        """
        return [plain(caption) for caption in captions]


def plain(text: str) -> str:
    """Nothing in it is markup: a policy may write anything."""
    return re.sub(r"([\\`*_~|\[\]])", r"\\\1", escape(text.replace("\n", " "), quote=False))


def as_html(marked: str) -> str:
    """What `CaptionMarker.mark` gave, for a page of HTML."""
    text, open_now = "", []
    for escaped, mark, rest in re.findall(r"\\(.)|(\*\*|~~)|(.)", marked, re.DOTALL):
        if not mark:
            text += escaped or rest
        elif open_now and open_now[-1] == mark:
            text += f"</{MARKS[open_now.pop()]}>"
        else:
            open_now.append(mark)
            text += f"<{MARKS[mark]}>"
    return text + "".join(f"</{MARKS[mark]}>" for mark in reversed(open_now))
