"""`uae doctor`: what this machine has, what will be slow on it, and what is missing."""

from __future__ import annotations

from uae_lightning.usage import Parser

DESCRIPTION = """\
Looks at Python, packages, cores, memory, disk, CPU instructions, GPUs and the files of the package. Nothing is changed.

    uae doctor
    uae doctor && uae run --config conf/demo.yaml     the exit code is 1 where something is missing
"""


def main(args: list[str]) -> None:
    Parser(prog="uae doctor", description=DESCRIPTION).parse(args)
    from uae_lightning.terminal.checks import findings

    found = findings()
    for one in found:
        print(f"{one.level:8} {one.what}{f': {one.remedy}' if one.remedy else ''}")
    if missing := [one.what for one in found if one.level == "missing"]:
        raise ValueError(f"what is missing will fail: {'; '.join(missing)}; the lines above say what helps")
    slow = sum(one.level == "slow" for one in found)
    print("\nNothing is missing." + (f" {slow} thing{'s' * (slow > 1)} will be slow." if slow else ""))
