"""Ranges of numeric options: types of arguments that are checked wherever a number comes in.

    @checked
    class EMA(L.Callback):
        def __init__(self, decay: ShareBelow1 = 0.998, every: Count = 1) -> None: ...

A command line and a YAML are checked as they are parsed (jsonargparse and argparse call the type), before anything is
loaded; `checked` does the same where a class is called from Python. What comes out is a plain int or float.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse.typing import register_type

T = TypeVar("T")


class OutOfRange(argparse.ArgumentTypeError, ValueError):
    """argparse shows the words of the one, jsonargparse those of the other."""


RANGES: dict[str, type] = {}


def number(name: str, kind: type, words: str, holds: Callable[[Any], bool]) -> type:
    """A type called `name` whose call reads a number: `words` say which are allowed, and NaN never is."""

    def read(cls: type, value: Any) -> int | float:
        try:
            result = kind(value)
            wrong = isinstance(value, bool) or (isinstance(value, float) and value != result) or not holds(result)
        except (TypeError, ValueError, OverflowError):
            wrong = True
        if wrong:
            raise OutOfRange(f"must be {words}, got {value!r}")
        return result

    made = type(name, (kind,), {"__new__": read, "__module__": __name__})
    register_type(made, serializer=kind, type_check=lambda value, of: False)  # always read, hence always checked
    return RANGES.setdefault(name, made)


MOST = 2**31 - 1

if TYPE_CHECKING:  # what comes out
    Count = int
    CountOrEndless = int
    Several = int
    Natural = int
    NaturalOrAll = int
    Seed = int
    Number = float
    Finite = float
    Positive = float
    NonNegative = float
    ModeScale = float
    Limit = float
    FromOne = float
    Share = float
    ShareBelow1 = float
    ShareAbove0 = float
else:
    Count = number("Count", int, f"a whole number from 1 to {MOST}", lambda n: 1 <= n <= MOST)
    CountOrEndless = number(
        "CountOrEndless", int, f"a whole number from 1 to {MOST}, or -1", lambda n: n == -1 or 1 <= n <= MOST
    )
    Several = number("Several", int, f"a whole number from 2 to {MOST}", lambda n: 2 <= n <= MOST)
    Natural = number("Natural", int, f"a whole number from 0 to {MOST}", lambda n: 0 <= n <= MOST)
    NaturalOrAll = number("NaturalOrAll", int, "a whole number of at least 0, or -1 for all", lambda n: n >= -1)
    Seed = number("Seed", int, "a whole number from 0 to 4294967295", lambda n: 0 <= n < 2**32)
    Number = number("Number", float, "a number", lambda x: x == x)
    Finite = number("Finite", float, "a finite number", math.isfinite)
    Positive = number("Positive", float, "a number above 0", lambda x: 0 < x < math.inf)
    NonNegative = number("NonNegative", float, "a number of at least 0", lambda x: 0 <= x < math.inf)
    Limit = number("Limit", float, "a number above 0 (inf is no limit)", lambda x: x > 0)
    FromOne = number("FromOne", float, "a number of at least 1 (inf is no limit)", lambda x: x >= 1)
    Share = number("Share", float, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    ShareBelow1 = number("ShareBelow1", float, "a number of at least 0 and below 1", lambda x: 0 <= x < 1)
    ShareAbove0 = number("ShareAbove0", float, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
    ModeScale = number(
        "ModeScale", float, "a number from -1 to 1.75 (2 / (pi - 2))", lambda x: -1 <= x <= 2 / (math.pi - 2)
    )


def checked(cls: type[T]) -> type[T]:
    """Decorates a class: its constructor raises ValueError where an argument is outside the range of its annotation."""
    init, signature = cls.__init__, inspect.signature(cls.__init__)

    @functools.wraps(init)
    def __init__(self, *args: Any, **options: Any) -> None:
        for name, value in signature.bind(self, *args, **options).arguments.items():
            annotation = str(signature.parameters[name].annotation)
            if (of := RANGES.get(annotation.removesuffix(" | None"))) and not (value is None and "None" in annotation):
                check(name, of, value)
        init(self, *args, **options)

    cls.__init__ = __init__  # type: ignore[method-assign]  # to wrap it is the purpose
    return cls


def check(name: str, of: type, value: Any) -> None:
    """Raises ValueError where `value` is outside the range."""
    try:
        of(value)
    except OutOfRange as error:
        raise ValueError(f"{name} {error}") from None


def explained(message: str) -> str | None:
    """jsonargparse's nested message about a number outside its range, as `OPTION must be ..., got ...`; None of others.

    Only the lines that enclose the one about the number tell which option it is: the others are about alternatives.
    """
    if not (reason := re.search(r"Not of type \w+: (must be .*)", message)):
        return None
    option, owner, indent = "", "", math.inf
    for line in reversed(message[: reason.start()].splitlines()):
        depth = len(line) - len(line.lstrip(" -"))
        if not line.strip(" -") or depth >= indent:
            continue
        indent = depth
        if key := re.search(r'Parser key "([\w.]+)"', line):
            option = f"{key[1]}.{option}" if option else key[1]
        elif found := re.search(r"Problem with given class_path '([\w.]+)\.(\w+)'", line):
            kind = getattr(sys.modules.get(found[1]), found[2], None)  # of a dataclass the fields are options at once
            option, owner = option if is_dataclass(kind) else f"init_args.{option}", owner or f" ({found[2]})"
    return f"{option}{owner} {reason[1]}"
