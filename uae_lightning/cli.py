"""The one door: `uae COMMAND ...`, which is also `python -m uae_lightning COMMAND ...`.

Each command imports what it needs when it is called, so that `uae --help` is quick.
"""

from __future__ import annotations

import importlib
import os
import sys

# Read when torch and tokenizers are imported, which happens below this line only.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve their neighbours on a busy machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from uae_lightning import __version__
from uae_lightning.commands import COMMANDS
from uae_lightning.commands.init import by_name
from uae_lightning.files import explained
from uae_lightning.parallel.stopping import Stopped, say_how_to_go_on, stoppable
from uae_lightning.run.output import steady_output
from uae_lightning.usage import UsageError, closest

EXAMPLES = """\
examples:
  uae run --config conf/demo.yaml                           everything, about 5 minutes on 2 CPU cores
  uae run --config conf/demo.yaml --resume                  continue where it was stopped
  uae run --config conf/demo.yaml --from encoder_rl         again from that stage on
  uae fit --config conf/scenes/encoder_rl.yaml --trainer.max_steps 20
  uae watch runs/demo                                       how it stands, while it trains
  uae evaluate --config conf/demo.yaml --weights runs/demo --output evaluation.json
  uae reconstruct picture.png --weights runs/demo
  uae generate "a large red ball in the center" --weights runs/demo
  uae caption photos --weights runs/demo --to captions.jsonl
  uae export --weights runs/demo --to exported
  uae app                                                   the same in the browser

UAE_DEBUG=1 shows the traceback of an error.
"""


FIRST = """\
uae-lightning {version}: one image -> caption -> image auto-encoder, trained in three stages (arXiv 2509.09666)

Three things to try first:
  uae doctor                                                what this machine has, what will be slow, what is missing
  uae generate "a red cat at the center and a blue bus at the top left"       seconds, with the weights that come along
  uae run --config demo                                     the three stages, about 5 minutes on 2 CPU cores

Then: `uae watch runs/demo` beside it, runs/demo/report.html afterwards. `uae --help` lists all commands.
"""


def first_text() -> str:
    """What `uae` alone says."""
    missing = "" if os.path.exists("conf/demo.yaml") else "conf/ is not in this folder: `uae init .` copies it.\n"
    return FIRST.format(version=__version__) + missing


def help_text() -> str:
    lines = [f"  {name:15} {about}" for name, (about, _) in COMMANDS.items()]
    return (
        "usage: uae COMMAND [options]        `uae COMMAND --help` explains each\n\n"
        "Trains one image -> caption -> image auto-encoder in three stages (arXiv 2509.09666).\n\n"
        "commands:\n" + "\n".join(lines) + f"\n\n{EXAMPLES}"
    )


def main(args: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 1 for an error while running, 2 for a mistake in the call, 130 and
    143 where SIGINT and SIGTERM ended it."""
    with steady_output() as streams:
        code = answer(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
        if lost := next((stream.lost for stream in streams if stream.lost), None):
            print(f"uae: error: the work is done, but not all that was printed is there: {lost}", file=sys.stderr)
            code = code or 1
    return code


def answer(args: list[str]) -> int:
    if not args:
        print(first_text(), end="")
        return 0
    if args[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if args[0] == "--version":
        print(f"uae-lightning {__version__}")
        return 0
    try:
        with stoppable():
            dispatch(args[0], args[1:])
    except Stopped as stopped:
        say_how_to_go_on(stopped, args)
        return stopped.code
    except Exception as error:
        known = str(error) if isinstance(error, ValueError | FileNotFoundError | FloatingPointError) else None
        if (message := explained(error) or known) is None or os.environ.get("UAE_DEBUG") == "1":
            raise
        print(f"uae: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def dispatch(command: str, args: list[str]) -> None:
    if command not in COMMANDS:
        kind = "option" if command.startswith("-") else "command"
        raise UsageError(f"unknown {kind} {command!r}{closest(command, COMMANDS)} (commands: {', '.join(COMMANDS)})")
    importlib.import_module(COMMANDS[command][1], "uae_lightning").main(by_name(args))
