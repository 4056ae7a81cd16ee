"""`uae completion`: what lets a shell complete commands and options."""

from __future__ import annotations

import importlib
import io
import re
from contextlib import redirect_stdout, suppress

from uae_lightning.usage import Parser

DESCRIPTION = """\
Prints a completion script, made from the commands of this version.

    uae completion > ~/.local/share/bash-completion/completions/uae       bash, from the next shell on
    eval "$(uae completion)"                                              bash, in this shell; takes seconds
    autoload -U +X bashcompinit && bashcompinit && eval "$(uae completion)"    zsh
"""
FIT = ["--config", "--resume", "--overwrite", "--print_config", "--seed_everything", "--trainer.max_steps"]
OF_A_STAGE = {"fit": FIT, "validate": FIT[:1] + FIT[3:5]}  # the rest are keys of its YAML, thousands


def main(args: list[str]) -> None:
    Parser(prog="uae completion", description=DESCRIPTION).parse(args)
    from uae_lightning.commands import COMMANDS
    from uae_lightning.terminal.completion import bash

    print(bash({name: OF_A_STAGE.get(name) or options_of(module) for name, (_, module) in COMMANDS.items()}), end="")


def options_of(module: str) -> list[str]:
    """The options that a command's help names in its list."""
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        importlib.import_module(module, "uae_lightning").main(["--help"])
    listed = printed.getvalue().partition("options:")[2]
    return list(dict.fromkeys(re.findall(r"^\s+(?:-\w(?: \w+)?, )?(--[a-z][\w-]*)", listed, re.MULTILINE)))
