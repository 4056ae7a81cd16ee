"""What a signal, or a reader that is gone, does to a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uae_lightning.parallel.stopping import Stopped, resumed, stoppable


@pytest.fixture(autouse=True)
def own_handlers():
    """Whoever starts tests in the background has them ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SAY = """
import sys
from uae_lightning import cli
cli.dispatch = lambda *_: [print(number, file=stream, flush=True) for number in range(3) for stream in (sys.stdout, sys.stderr)]
sys.exit(cli.main(["run"]))
"""  # noqa: E501


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_the_code_of_the_shell_and_the_command_that_goes_on(number, monkeypatch, capsys):
    # red with `return 1` in cli.answer, or with sys.exit(number) in the handler
    from uae_lightning import cli

    monkeypatch.setattr(cli, "dispatch", lambda *_: os.kill(os.getpid(), number))
    assert cli.main(["run", "--config", "a b.yaml", "--overwrite"]) == 128 + number
    said = f"uae: stopped by {number.name}; go on with: uae run --config 'a b.yaml' --resume\n"
    assert capsys.readouterr().err == said
    assert cli.main(["cache"]) == 128 + number
    assert "the same command goes on" in capsys.readouterr().err
    assert cli.main(["generate"]) == 128 + number
    assert capsys.readouterr().err == f"uae: stopped by {number.name}\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main(["run"]) == 128 + number and capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored_and_a_worker_does_not_speak():
    # red without the look at `before[number]`, or without that at `owner`
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGINT)
        with stoppable():
            if not (worker := os.fork()):
                os.kill(os.getpid(), signal.SIGINT)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("args", "then"),
    [
        (["fit", "--config=a", "--resume"], ["fit", "--config=a", "--resume"]),
        (["run", "--from", "b", "--x.y", "2"], ["run", "--x.y", "2", "--resume"]),
        (["run", "--from=b"], ["run", "--resume"]),
        (["run", "--only", "b"], ["run", "--only", "b", "--resume"]),
    ],
)
def test_the_command_that_goes_on(args, then):
    # red without next(words): a stage's name would be left
    assert resumed(args) == then


@pytest.mark.parametrize(("stdout", "code"), [("pipe", 0), ("full", 1), ("closed", 0)])
def test_output_that_cannot_be_written_ends_nothing(stdout: str, code: int):
    # red without steady_output: a traceback, code 120 or 1; `full` with code 0 would hide what is lost
    options = {"stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    if stdout == "pipe":
        end, options["stdout"] = os.pipe()
        os.close(end)
    elif stdout == "full":
        options["stdout"] = os.open("/dev/full", os.O_WRONLY)
    else:
        options["preexec_fn"] = lambda: os.close(1)
    ended = subprocess.run([sys.executable, "-c", SAY], **options)
    lost = "uae: error: the work is done, but not all that was printed is there: [Errno 28] No space left on device\n"
    assert (ended.returncode, ended.stderr) == (code, "0\n1\n2\n" + lost * code)
