"""Rows of a JSONL that are chats about a picture, as ms-swift and LLaMA-Factory train on them:

{"messages": [{"role": "user", "content": "<image>Describe it."}, {"role": "assistant", "content": "A red cat."}],
 "images": ["cat.jpg"]}
"""

from __future__ import annotations

from typing import Any

CHAT = frozenset(("messages", "images"))
PICTURE = "<image>"  # where in a text the picture stands


def is_chat(row: Any) -> bool:
    return isinstance(row, dict) and row.keys() >= CHAT


def from_chat(row: dict[str, Any]) -> dict[str, Any]:
    """Its picture (a path, or bytes, of which JSON has none), the last answer and the last question (None where there
    is none), as image, caption and prompt.

    Raises:
        ValueError: it is about several pictures or none, or a message has no role or no text.
    """
    images = row["images"] if isinstance(row["images"], list) else [row["images"]]
    found = [_picture(image) if isinstance(image, dict) else image for image in images]
    if len(found) != 1 or not isinstance(found[0], str | bytes):
        raise ValueError(f"'images' must be a list with the path of one picture, got {images!r:.60}")
    if not isinstance(row["messages"], list) or not all(isinstance(message, dict) for message in row["messages"]):
        raise ValueError("'messages' must be a list of objects with role and content")
    said = {str(message.get("role")): text_of(message.get("content")) for message in row["messages"]}
    return {"image": found[0], "caption": said.get("assistant"), "prompt": said.get("user")}


def _picture(image: dict[str, Any]) -> Any:
    return image["bytes"] if isinstance(image.get("bytes"), bytes) else image.get("path")


def text_of(content: Any) -> str:
    """Of a message, whose content is a text or a list of parts, some of which are texts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = " ".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        raise ValueError(f"the content of a message must be a text or a list of parts, got {content!r:.60}")
    return content.replace(PICTURE, "").strip()
