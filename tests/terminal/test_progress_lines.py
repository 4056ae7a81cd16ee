import subprocess
import sys

from uae_lightning.terminal import progress
from uae_lightning.terminal.progress import Progress, say, time_left, watched


def test_into_a_file_it_writes_a_first_and_a_last_line_with_figures_and_time_left(capsys):
    # red with SECONDS 0, without `self.n == self.total`, or with the bar itself on standard error
    with Progress(20, "picture", "captions", done=3) as bar:
        for count in range(17):
            bar.set_postfix(reward=count / 100)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("| ")[1].split(" [")[0] for line in lines] == ["4/20", "20/20"]
    assert lines[0].startswith("captions:") and "<00:0" in lines[0] and "reward=0.16" in lines[1]


def test_now_and_then_a_line_comes_between(capsys, monkeypatch):
    # red without `or time.monotonic() - self.printed >= SECONDS`
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with Progress(None, "suite") as bar:
        bar.update(2)
        bar.update(5)
    assert [line.split(" ")[0] for line in capsys.readouterr().err.splitlines()] == ["2suite", "7suite"]


def test_a_part_of_something_longer_says_nothing_in_a_file(capsys):
    # red without `self.silent = passing`; the items are all handed on
    assert list(watched(iter("abc"), 3, "letter")) == ["a", "b", "c"]
    say("step 3")
    assert capsys.readouterr() == ("step 3\n", "")


def test_time_left_in_the_unit_that_is_read_at_a_glance():
    # red with `spent / total`
    assert time_left(30.0, 1, 3) == "about 60 s left"
    assert time_left(60.0, 1, 4) == "about 3 min left" and time_left(3600.0, 1, 4) == "about 3.0 h left"


def test_the_results_of_a_command_stay_alone_on_standard_output():
    # red with `sys.stdout` in place of `sys.stderr`
    code = "from uae_lightning.terminal.progress import watched, Progress\nwith Progress(1, 'x') as b: b.update()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "1/1" in done.stderr
