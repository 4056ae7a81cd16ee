"""Where weights live: folders on disk, or folders that are shipped inside the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SHIPPED = "shipped:"


def resolve(path: str | Path) -> Path:
    """The folder (or file) that `path` names.

    Args:
        path: "shipped:NAME" for what comes with the package, in `uae_lightning/weights/NAME`; anything else is an
            ordinary path, in which "~" is the home folder.

    Raises:
        FileNotFoundError: there is nothing at that place; the message says where it looked and what to do.
    """
    text = str(path)
    if text.startswith(SHIPPED):
        found = Path(str(resources.files("uae_lightning"))) / "weights" / text.removeprefix(SHIPPED)
        remedy = "train the shipped weights with `uae bootstrap`, or install the package with its weights"
    else:
        found = Path(text).expanduser()
        remedy = f"correct the path, or name weights that come with the package as {SHIPPED}NAME"
    if not found.exists():
        raise FileNotFoundError(f"{text!r} does not exist (looked at {found}): {remedy}")
    return found
