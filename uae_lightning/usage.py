"""What every command says when it is called wrongly: one message that names the option and the remedy."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UsageError(ValueError):
    """A mistake on the command line or in a YAML, found before time was spent."""


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


class Parser(argparse.ArgumentParser):
    """argparse that takes whole option names only and raises instead of exiting."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` lists the options")

    def parse(self, args: list[str]) -> argparse.Namespace:
        """Like parse_args; an unknown option is named together with the closest one."""
        options, unknown = self.parse_known_args(args)
        self.refuse(unknown)
        return options

    def refuse(self, unknown: list[str]) -> None:
        if unknown:
            name = unknown[0].split("=")[0]
            self.error(f"unknown option {name}{closest(name, self._option_string_actions)}")
