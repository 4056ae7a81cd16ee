"""Runs below the given folders: names without places, states, pages, also while one trains."""

import json
import shutil
import time

import pytest
import small_runs
from small_runs import validate

from uae_lightning.app import watching
from uae_lightning.app.run_folders import RunFolders, signature
from uae_lightning.app.watching import RunPages, document, state_of
from uae_lightning.usage import UsageError

runs, tabs = small_runs.runs, small_runs.tabs


@pytest.fixture
def run(runs, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(runs / "small", tmp_path / "runs" / "study" / "small")


def test_runs_are_found_by_names_that_tell_no_place(run, tmp_path):
    # red with `str(run)` as the name, links followed, or a depth of 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.json").write_text('{"stages": []}')
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    assert RunFolders([tmp_path / "runs"]).find() == {"study/small": run}
    assert list(RunFolders([run]).find()) == ["small"]
    assert list(RunFolders([run, tmp_path / "elsewhere", run]).find()) == ["small", "elsewhere", "small (3)"]
    for name in ("../elsewhere", str(run), "study"):
        with pytest.raises(UsageError, match="there is no run"):
            RunFolders([tmp_path / "runs"]).named(name)
    with pytest.raises(UsageError, match="is no folder"):
        RunFolders([tmp_path / "none"])


def test_a_link_names_a_run_by_its_folder(run, tmp_path):
    # red with the first of several taken, or only whole names known
    folders = RunFolders([tmp_path / "runs"])
    assert folders.called("small") == folders.called("study/small") == "study/small"
    with pytest.raises(UsageError, match="there is no run 'mall' here"):
        folders.called("mall")
    shutil.copytree(run, tmp_path / "runs" / "small2" / "small")
    with pytest.raises(UsageError, match="several runs are called 'small'"):
        folders.called("small")


def test_states(run):
    # red with a run under way called done, or a stopped one under way
    assert state_of("a", run).state == "done" and state_of("a", run).reward == "0.5150 → 0.7150"
    (run / "second" / "stage.json").unlink()
    assert (state_of("a", run).state, state_of("a", run).stages) == ("under way", "1 of 2, now second")
    assert state_of("a", run, now=time.time() + 3600).state == "stopped"
    (run / "first" / "stage.json").write_text("{")
    assert "cannot be read: stage.json is damaged" in state_of("a", run).state


def test_a_page_has_curves_and_pictures_and_nothing_of_the_machine(run):
    # red with `provenance` among the sections, or the gallery left out
    page = document(run)
    assert page.count("<svg") >= 4 and "train/loss" in page and page.count("data:image/png") >= 8
    assert str(run.parent) not in page and "uae fit" not in page and "<script" not in page
    assert "a &lt;b&gt;cat" in page


def test_news_of_a_run_under_way_are_shown_and_old_pages_kept(run, monkeypatch):
    # red with a key that misses validation.jsonl, or pages made anew each time
    made, whole = [], watching.document
    monkeypatch.setattr(watching, "document", lambda run: made.append(run) or whole(run))
    pages = RunPages()
    before, known = pages.page(run), signature(run)
    assert pages.page(run) == before and len(made) == 1
    (run / "second" / "stage.json").unlink()
    validate(run / "second", 8, 0.9)
    with (run / "second" / "validation.jsonl").open("a") as file:
        file.write('{"step": 12, "keys": [')  # a line that is being written
    assert signature(run) != known and pages.page(run) != before and "under way" in pages.page(run)


@pytest.mark.parametrize("name", ["run.json", "first/validation.jsonl"])
def test_a_damaged_run_is_said_to_be_one(name, run):
    # red with the error let through
    (run / name).write_text('{"a"\n\n')
    assert "cannot be shown" in document(run) and str(run.parent) not in document(run)


def test_a_run_that_has_just_begun(tmp_path):
    # red if it is called damaged
    (tmp_path / "run.json").write_text(json.dumps({"stages": ["first"], "name": "new"}))
    assert "there is nothing to show so far" in document(tmp_path)
    assert state_of("new", tmp_path).stages == "0 of 1"


def test_the_table_and_the_frame(tabs):
    # red if the page inside could run scripts
    assert "small" in tabs.table() and 'sandbox title="the run"' in tabs.run_page("small")
    assert tabs.news() == tabs.news() and tabs.run_page(None) == ""
