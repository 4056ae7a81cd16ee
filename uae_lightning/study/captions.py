"""Captions of the same picture along a run, as the page of a study prints them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any


class CaptionMarker:
    """Captions as they are; data whose facts are known has a subclass that marks them."""

    legend = ""

    def mark(self, captions: Sequence[str], key: str, data: dict[str, Any]) -> list[str]:
        """Captions of one picture, in the order of the run, as Markdown.

        Args:
            key: the picture's, of its batch.
            data: class_path and init_args of the data it comes from.
        """
        return [plain(caption) for caption in captions]


def plain(text: str) -> str:
    """Nothing in it is markup: a policy may write anything."""
    return re.sub(r"([\\`*_~|\[\]])", r"\\\1", escape(text.replace("\n", " "), quote=False))
