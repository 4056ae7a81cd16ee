"""What a signal, or a reader that is gone, does to a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.test_two_ranks import stage_yaml
from uae_lightning.parallel.stopping import Stopped, resumed, stoppable


@pytest.fixture(autouse=True)
def own_handlers():
    """Whoever starts tests in the background has them ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
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


@pytest.fixture
def job_of_slurm(tmp_path, monkeypatch) -> Path:
    """The process is the one task of job 7; what its `scontrol` was called with goes to the file, empty: it fails."""
    called, command = tmp_path / "called", tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {called}\ntest -z "$DOWN" || {{ echo down >&2; exit 1; }}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("JOB_ID", "NTASKS", "PROCID", "LOCALID", "NODEID", "JOB_NAME"):
        monkeypatch.setenv(f"SLURM_{name}", {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "uae"}.get(name, "0"))
    return called


def test_a_job_whose_time_is_over_goes_back_into_the_queue(job_of_slurm: Path, monkeypatch, capsys):
    # red without SIGUSR1 among the signals, or where a rank that is not the first asks too
    from uae_lightning import cli

    before = lambda *_: None  # noqa: E731  else the signal would end the tests, where nobody waits for it
    signal.signal(signal.SIGUSR1, before)
    monkeypatch.setattr(cli, "dispatch", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert cli.main(["run", "--config=a.yaml"]) == 128 + signal.SIGUSR1
    said = (
        "uae: stopped by SIGUSR1; job 7 is back in the queue, and goes on where its script says --resume; go on with: "
    )
    assert capsys.readouterr().err == f"{said}uae run --config=a.yaml --resume\n"
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert cli.main(["run"]) == 128 + signal.SIGUSR1 and capsys.readouterr().err == ""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("DOWN", "1")
    assert cli.main(["run"]) == 128 + signal.SIGUSR1
    assert "job 9_2 could not be put back into the queue (down)" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert cli.main(["run"]) == 128 + signal.SIGUSR1
    assert "could not be put back into the queue ([Errno 2]" in capsys.readouterr().err
    assert job_of_slurm.read_text().splitlines() == ["requeue 7", "requeue 9_2"]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_lightning_does_not_requeue_beside_us(job_of_slurm: Path, parts_folder: Path, tmp_path: Path, monkeypatch):
    # red without SIGUSR1 among the signals: Lightning writes a checkpoint of its own, asks scontrol, and trains on
    from uae_lightning import cli
    from uae_lightning.stages.decoder_pretrain import DecoderPretrain

    step = DecoderPretrain.training_step

    def ended(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DecoderPretrain, "training_step", ended)
    config, folder = stage_yaml("decoder_pretrain", parts_folder, tmp_path), tmp_path / "fit"
    args = ["fit", f"--config={config}", f"--trainer.default_root_dir={folder}", "--trainer.devices=1"]
    assert cli.main(args) == 128 + signal.SIGUSR1
    assert job_of_slurm.read_text() == "requeue 7\n" and not list(folder.rglob("hpc_ckpt*"))


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
