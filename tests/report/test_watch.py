"""Runs written here by hand, as they lie on disk while they train, when they were killed, and when they have ended."""

import json
import os
import socket
import time

import pytest
from torch.utils.tensorboard import SummaryWriter

from uae_lightning.cli import main
from uae_lightning.report.live import lines_of, look_at


@pytest.fixture
def run(tmp_path):
    record = {"name": "demo", "stages": ["draw", "see", "later"], "command": "uae run --config a.yaml --overwrite"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    write_stage(tmp_path / "draw", batches=10, done=True)
    write_stage(tmp_path / "see", batches=4)
    return tmp_path


def write_stage(folder, batches, done=False):
    (folder / "gallery").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {init_args: {updates_per_batch: 2}}\ntrainer: {max_steps: 20}\n")
    rows = [{"step": step, "reward": [0.5 + step / 100, 0.6 + step / 100]} for step in (0, 2 * batches)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "rew')
    (folder / "gallery" / "captions.json").write_text(json.dumps({"0": ["a dog"], "12": [f"a {folder.name}"]}))
    with SummaryWriter(folder) as writer:
        for step in range(batches):
            writer.add_scalar("train/loss", 0.0, step, walltime=1000 + 5 * step)
            writer.add_scalar("train/reward", step / 10, step, walltime=1000 + 5 * step)
    if done:
        (folder / "stage.json").write_text(json.dumps({"seconds": 61.0, "step": 20}))


def hold(run, process=None, host=None):
    """As `parallel.locking` writes it."""
    (run / ".lock").write_text(f"process {process or os.getpid()} on {host or socket.gethostname()}")


def test_a_live_run_says_where_it_is_and_how_long_it_takes(run):
    # red with batches counted as steps, or with the last validation in place of the batches
    hold(run)
    state = look_at(run)
    assert [(stage.name, stage.state) for stage in state.stages] == [
        ("draw", "done"), ("see", "under way"), ("later", "waiting"),
    ]  # fmt: skip
    see = state.stages[1]
    assert (see.step, see.steps, see.seconds) == (8, 20, 30.0)  # 6 batches of 5 seconds
    assert see.reward == pytest.approx(0.3) and see.held_out == pytest.approx((0.55, 0.63)) and see.caption == "a see"
    text = "\n".join(lines_of(state, 200))
    assert "demo: running" in text and "8/20, reward 0.300, held out 0.5500 -> 0.6300, about 30 s left" in text
    assert text.count('"a see"') == 1 and '"a draw"' not in text and "61 s" in text


def test_a_half_written_event_is_no_mistake(run):
    # red where the reader raises at a record that ends too early
    hold(run)
    (file,) = (run / "see").glob("events.out.*")
    for cut in (1, 9, 30):
        file.write_bytes(file.read_bytes()[:-cut])
        assert look_at(run).stages[1].step in (6, 8)


def test_it_ends_by_itself_when_the_run_has_ended_or_died(run, capsys):
    # red with `os.path.exists` in place of the look at the process: the lock of a killed one stays
    hold(run, process=2**22 + 1)
    began = time.monotonic()
    assert main(["watch", str(run)]) == 0
    assert time.monotonic() - began < 5
    output = capsys.readouterr().out
    assert "demo: stopped" in output and "goes on with: uae run --config a.yaml --resume" in output
    for name in ("see", "later"):
        (run / name).mkdir(exist_ok=True)
        (run / name / "stage.json").write_text(json.dumps({"seconds": 5.0}))
    assert main(["watch", str(run), "--once"]) == 0
    assert "demo: finished" in capsys.readouterr().out


def test_of_another_machine_the_lock_is_believed(run):
    # red with this machine asked for a process of that one
    hold(run, process=2**22 + 1, host="elsewhere")
    assert look_at(run).state == "running"


def test_a_stage_alone_can_be_watched(run):
    # red without the look whether it is a stage's folder
    state = look_at(run / "see")
    assert state.state == "stopped" and state.stages[0].step == 8
    (run / "see" / "weights").mkdir()
    assert look_at(run / "see").state == "finished"


@pytest.mark.parametrize(
    ("damage", "words"),
    [("none", "not the folder of a run"), ("{", "run.json is damaged"), ("{}", "run.json is damaged")],
)
def test_what_is_no_run_is_refused_in_one_line(damage, words, tmp_path, capsys):
    # red with a traceback of the JSON reader
    if damage != "none":
        (tmp_path / "run.json").write_text(damage)
    assert main(["watch", str(tmp_path)]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
