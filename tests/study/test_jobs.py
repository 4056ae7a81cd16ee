import json
import os
import time

import pytest

from uae_lightning.parallel.stopping import Stopped, stoppable
from uae_lightning.study.jobs import Desk, Job, Runner
from uae_lightning.usage import UsageError


@pytest.fixture
def job(tmp_path):
    """job(name, needs=..., script=...): a shell command whose result is the file NAME."""

    def make(name, needs=None, script="", settings=None, seconds=1.0):
        result = tmp_path / name.replace("/", ".")
        line = script or f"echo {name} >> {tmp_path}/order; touch {result}"
        command = ["sh", "-c", line]
        return Job(name, needs, seconds, settings or {"lr": 1}, result, lambda: command, lambda: result.unlink(True))

    return make


def test_jobs_run_after_what_they_need_and_once(job, tmp_path, capsys):
    # red with `blocked` empty, or with done() always False
    desk = Desk(tmp_path / "logs", [job("c", "b"), job("b", "a"), job("a"), job("alone", seconds=9)])
    assert Runner(desk, 1, 2).run() == []
    assert (tmp_path / "order").read_text().split() == ["alone", "a", "b", "c"]  # most to come first
    assert "4 of 4 jobs" in capsys.readouterr().out
    assert Runner(desk, 2, 2).run() == []
    assert "4 of 4 jobs are done already" in capsys.readouterr().out
    assert len((tmp_path / "order").read_text().split()) == 4
    (tmp_path / "b").unlink()
    Runner(desk, 2, 2).run()
    assert (tmp_path / "order").read_text().split()[4:] == ["b"]


def test_a_failing_job_is_shown_and_the_others_go_on(job, tmp_path, capsys):
    # red with `self.failed` left out of `blocked`: "after" would run; red with `return` in place of `append`
    broken = job("seed-0/broken", script="echo the reason >&2; exit 3", seconds=5)
    lying = job("lying", script="true")  # exit code 0, but nothing is there
    desk = Desk(tmp_path / "logs", [broken, job("after", "seed-0/broken"), job("other"), lying])
    assert {one.name for one in Runner(desk, 1, 1).run()} == {"seed-0/broken", "lying"}
    out = capsys.readouterr().out
    assert "FAILED seed-0/broken (exit code 3)" in out and "| the reason" in out and "not run: after" in out
    assert (tmp_path / "order").read_text().split() == ["other"]
    assert "the reason" in (tmp_path / "logs" / "seed-0.broken.log").read_text()


def test_cores_are_shared_and_a_lonely_job_gets_all(job, tmp_path):
    # red with `cores // slots` for every job
    script = f"echo $OMP_NUM_THREADS >> {tmp_path}/threads; sleep 0.3; touch {tmp_path}"
    chain = [
        job("a", script=f"sleep 1; {script}/a"),
        job("b", script=f"{script}/b"),
        job("c", "a", script=f"{script}/c"),
    ]
    Runner(Desk(tmp_path / "logs", chain), 2, 4).run()
    assert (tmp_path / "threads").read_text().split() == ["2", "2", "4"]


def test_results_of_other_settings_do_not_count(job, tmp_path):
    # red with the digest left out of done() or stale()
    Runner(Desk(tmp_path / "logs", [job("a")]), 1, 1).run()
    assert json.loads((tmp_path / "logs" / "a.json").read_text())["settings"] == {"lr": 1}
    changed = Desk(tmp_path / "logs", [job("a", settings={"lr": 2})])
    assert not changed.done(changed.jobs[0]) and changed.stale() == changed.jobs
    assert Desk(tmp_path / "logs", [job("a")]).stale() == [] and Desk(tmp_path / "new", [job("b")]).stale() == []
    assert len(Desk(tmp_path / "new", [job("a")]).stale()) == 1  # a result that nobody has a record of


def test_two_studies_do_not_share_a_folder(job, tmp_path):
    # red without the lock
    desk = Desk(tmp_path / "logs", [job("a")])
    with desk.alone(), pytest.raises(UsageError, match="in use"):
        Runner(desk, 1, 1).run()


def test_time_left_is_corrected_by_what_jobs_took(job, tmp_path):
    # red with the scale left at 1
    runner = Runner(Desk(tmp_path / "logs", [job("b", seconds=60.0), job("c", seconds=60.0)]), 2, 2)
    assert runner.minutes_left() == pytest.approx(1.0)
    runner.estimated, runner.taken = 10.0, 20.0
    assert runner.minutes_left() == pytest.approx(2.0)


def test_jobs_end_with_their_study(job, tmp_path):
    # red with `pass` in place of `process.terminate()`
    pair = [job("a", script="exec sleep 60"), job("b", script="sleep 0.5; kill $PPID; exec sleep 60")]
    desk = Desk(tmp_path / "logs", pair)
    began = time.monotonic()
    with pytest.raises(Stopped), stoppable():
        Runner(desk, 2, 2).run()
    assert time.monotonic() - began < 30
    with desk.alone():  # no job is left that holds the lock
        pass


def test_wall_time_counts_jobs_beside_each_other_once(job, tmp_path):
    # red with `began` in place of `max(began, until)`
    desk = Desk(tmp_path, [job("a"), job("b"), job("c"), job("not done")])
    for one, ended, seconds in zip(desk.jobs, (100, 130, 400), (60, 60, 60), strict=False):
        one.result.touch()
        desk.note(one, seconds=seconds)
        os.utime(tmp_path / f"{one.name}.json", (1e9, 1e9 + ended))
    assert desk.wall_minutes() == pytest.approx((90 + 60) / 60)
