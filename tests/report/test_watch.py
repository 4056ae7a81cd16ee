"""Runs written here by hand, as they lie on disk while they train, when they were killed, and when they have ended."""

import json
import os
import shutil
import socket
import threading
import time

import pytest
from torch.utils.tensorboard import SummaryWriter

from uae_lightning.cli import main
from uae_lightning.commands import watch
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


def hold(run, process=None, host=None, since=0.0):
    """As `parallel.locking` writes it, before all that a process writes."""
    (run / ".lock").write_text(f"process {process or os.getpid()} on {host or socket.gethostname()}")
    os.utime(run / ".lock", (since, since))


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
    assert "demo: running" in text and "8/20, about 30 s left, reward 0.300, held out 0.5500 -> 0.6300" in text
    assert text.count('"a see"') == 1 and '"a draw"' not in text and "61 s" in text


@pytest.mark.parametrize("again", [False, True])
def test_what_is_set_up_is_said_before_the_first_step(again, run, monkeypatch):
    # red with `step > 0` before the look at config.yaml, or the time of another file
    files = {"config.yaml": 130, "validation.jsonl": 160}
    hold(run, since=100)
    os.utime(run / "draw" / "stage.json", (120, 120))
    monkeypatch.setattr(time, "time", lambda: 200.0)
    see = run / "see"
    kept = {name: (see / name).read_text().partition("\n{")[0] for name in files}  # the first validation alone
    for path in see.iterdir() if not again else [see / "config.yaml"]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    (see / "gallery").mkdir(exist_ok=True)
    assert "] see                loading models and data for 80 s so far" in shown(run)
    for name, said in (("config.yaml", "first validation for 70 s"), ("validation.jsonl", "first batch for 40 s")):
        (see / name).write_text(kept[name])
        os.utime(see / name, (files[name], files[name]))
        assert ("reward 0.300" if again else said) in shown(run)


def test_a_run_that_is_judged_says_so(run, monkeypatch):
    # red if the end is looked for before the last stage is done, or the stage is said to load meanwhile
    monkeypatch.setattr(time, "time", lambda: 200.0)
    hold(run, since=100)
    assert "judging" not in shown(run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"judged": True}))
    assert "judging" not in shown(run)  # the first stage is done: its start was judged, or is no longer
    for path in [run / "draw", run / "see"]:
        shutil.rmtree(path)
    assert "demo: running, judging the start for 2 min so far" in shown(run) and shown(run).count("waiting") == 3
    (run / "evaluation").mkdir()
    (run / "evaluation" / "start.json").write_text("{}")
    os.utime(run / "evaluation" / "start.json", (150, 150))
    assert "judging" not in shown(run) and "loading models and data for 50 s" in shown(run)
    for name in ("draw", "see", "later"):
        (run / name).mkdir()
        (run / name / "stage.json").write_text(json.dumps({"seconds": 5.0}))
        os.utime(run / name / "stage.json", (180, 180))
    assert "judging the end for 20 s so far" in shown(run)


def test_a_stage_alone_that_still_loads(tmp_path):
    # red where a folder without config.yaml is no stage's
    hold(tmp_path, since=time.time() - 7)
    assert "loading models and data for 7 s so far" in shown(tmp_path)


def shown(run):
    return "\n".join(lines_of(look_at(run), 200))


def test_a_folder_that_is_not_there_is_waited_for(tmp_path, monkeypatch, capsys):
    # red without the wait, or with one that has no end
    monkeypatch.setattr(watch, "PATIENCE", 0.3)
    assert main(["watch", str(tmp_path / "none"), "--every", "0.1"]) in (1, 2)
    output = capsys.readouterr()
    assert "is not there yet" in output.out and "not the folder of a run" in output.err
    monkeypatch.setattr(watch, "PATIENCE", 30)
    threading.Timer(0.3, lambda: shutil.copytree(run_of(tmp_path), tmp_path / "none")).start()
    assert main(["watch", str(tmp_path / "none"), "--every", "0.1"]) == 0


def run_of(folder):
    """A run that was stopped before it trained."""
    (folder / "stopped").mkdir()
    (folder / "stopped" / "run.json").write_text(json.dumps({"name": "late", "stages": ["a"], "command": "uae run"}))
    return folder / "stopped"


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
