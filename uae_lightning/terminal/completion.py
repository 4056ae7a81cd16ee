"""A completion script for bash, and for zsh by its bashcompinit: commands, then their options, then files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SCRIPT = """\
# uae-lightning: completion for bash; in zsh run `autoload -U +X bashcompinit && bashcompinit` first
_uae() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    if [ "${{word:0:1}}" = "-" ]; then
        COMPREPLY=($(compgen -W "$words --help" -- "$word"))
    else
        COMPREPLY=()
    fi
}}
complete -o default -F _uae uae
"""


def bash(options: Mapping[str, Sequence[str]]) -> str:
    """The script.

    Args:
        options: of each command, such as {"run": ["--config", "--resume"]}.
    """
    cases = "\n".join(f'        {name}) words="{" ".join(known)}" ;;' for name, known in options.items())
    return SCRIPT.format(commands=" ".join([*options, "help", "--version"]), cases=cases)
