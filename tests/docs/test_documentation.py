"""README, docs and notebooks tell the truth: commands parse, files and classes exist, links lead somewhere."""

from __future__ import annotations

import functools
import importlib
import json
import re
from pathlib import Path

import pytest
from documented import NOTEBOOKS, PAGES, ROOT, calls_of, commands_in, lines_of_code, spans_of_code, written

from uae_lightning.commands import COMMANDS, completion
from uae_lightning.commands.init import by_name
from uae_lightning.run import spec as run_spec
from uae_lightning.run.stage_cli import parse_stage

OF_STAGES = ("run", "plan", "fit", "validate", "cache", "fault-costs")  # take dotted options
ELSEWHERE = ("small.yaml", "small_run.yaml", "sees.yaml", "reward.yaml", "pick_score.yaml", "mine.yaml")  # of a reader
CALLS = {
    " ".join(command): command
    for command in [
        *(command for page in PAGES for command in commands_in(lines_of_code(page))),
        *(call for notebook in NOTEBOOKS for call in calls_of(notebook)),
    ]
}
SPANS = {" ".join(command): command for page in PAGES for command in commands_in(spans_of_code(page))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the files that commands name are there, empty."""
    place = tmp_path_factory.mktemp("documented")
    (place / "conf").symlink_to(ROOT / "conf")
    (place / "mine").mkdir()
    (place / "mine" / "conf").symlink_to(ROOT / "conf")
    for folder in ("photos", "held_out", "captioned", "data/photos", "data/held_out", "runs/demo"):
        (place / folder).mkdir(parents=True)
    (place / "picture.png").touch()
    return place


def test_there_are_commands_to_look_at():
    # red if the README is indented in another way, or notebooks call `uae` by another name
    assert len(CALLS) > 30 and len(SPANS) > 25
    assert {"generate", "app", "run", "fit", "plan", "export", "cache"} <= {name for name, *_ in CALLS.values()}


@pytest.mark.parametrize("call", CALLS)
def test_a_command_of_the_docs_parses(call, place, monkeypatch):
    # red with an option misspelt or renamed, an overlay or a YAML that is gone, or a value out of range
    monkeypatch.chdir(place)
    name, *args = CALLS[call]
    assert name in COMMANDS
    if any(word.endswith("notebook.yaml") for word in args):
        args = [word.replace("conf/notebook.yaml", "conf/scenes/encoder_rl.yaml") for word in args]
        name = "fit"
        args.remove("--overwrite")
    args = by_name(args)
    module = importlib.import_module(COMMANDS[name][1], "uae_lightning")
    if name in ("fit", "validate"):
        parse_stage([name, *args])
    elif name in ("init", "doctor", "completion"):
        assert all(word in options_of(name) for word in args if word.startswith("--"))
    else:
        parsed = module.parse(args)
        options, rest = parsed if isinstance(parsed, tuple) else (parsed, [])
        if name in ("run", "plan"):
            check_run(Path(args[args.index("--config") + 1]), options, rest)
        elif rest:
            parse_stage(["fit", *rest])


def check_run(config: Path, options, dotted: list[str]) -> None:
    """The overlays and the stage are offered; dotted options are those of its stages."""
    run = run_spec.read_run_or_stage(config, options.overlays)
    chosen = [getattr(options, name, None) for name in ("only", "start")]
    assert {name for name in chosen if name} <= {stage.name for stage in run.stages}
    if dotted:
        for stage in run.stages:
            parse_stage(run_spec.fit_args(stage, dotted, Path("unused"), {}))


@pytest.mark.parametrize("span", SPANS)
def test_a_command_in_a_sentence_has_options_that_there_are(span, monkeypatch):
    # red with `uae reconstruct --candidate 4`, or a YAML that is not there
    monkeypatch.chdir(ROOT)
    name, *args = SPANS[span]
    assert name in COMMANDS
    for word in args:
        option = word.split("=")[0]
        if option.startswith("--"):
            passed_on = name in OF_STAGES and (option == "--config" or "." in option)
            assert passed_on or option in options_of(name), option
        elif word.endswith(".yaml") and word not in ELSEWHERE:
            assert Path(word).is_file(), word


@functools.cache
def options_of(name: str) -> list[str]:
    return completion.OF_A_STAGE.get(name) or completion.options_of(COMMANDS[name][1])


# ------------------------------------------------------------------------------------------------ names and links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_benchmarks_and_files_are_there(page):
    # red with a target of make, a benchmark, a YAML or a test that was renamed
    text = written(page)
    targets = re.findall(r"^([\w.-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in [*lines_of_code(page), *spans_of_code(page)]:
        if match := re.match(r"make ([a-z.-]+)", line):
            assert match[1] in targets, line
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for file in re.findall(r"\b((?:conf|tests|docs|benchmarks)/[a-z\d_./-]+\.(?:yaml|py|sh|md|ipynb))\b", text):
        assert any((folder / file).is_file() for folder in (ROOT, ROOT / "uae_lightning")), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_classes_are_there(page):
    # red with a class_path of an earlier version
    for path in set(re.findall(r"\b((?:uae_lightning|callbacks)(?:\.[a-z_0-9]+)*\.[A-Z]\w+)\b", written(page))):
        module, name = path.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    # red with a link to a heading that was renamed, or to a picture that is not there
    generated = {"commands.md", "parts.md", *(f"{name}.md" for name in readme_pages()), *pages_of_notebooks()}
    for link in re.findall(r"\]\(([^)\s]+)\)", written(page)):
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", file) or (page.parent.name == "docs" and file in generated):
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", one).strip().lower().replace(" ", "-") for one in headings}, link


def readme_pages() -> list[str]:
    """Pages that are sections of the README, by the table of docs/site_pages.py."""
    table = re.search(r"^SECTIONS = \{.*?^\}", (ROOT / "docs" / "site_pages.py").read_text(), re.MULTILINE | re.DOTALL)
    pairs = re.findall(r'^    "(.+)": "([\w-]+)",$', table[0], re.MULTILINE)
    headings = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {heading for heading, _ in pairs} <= {*headings}
    return [page for _, page in pairs]


def pages_of_notebooks() -> list[str]:
    return [f"{notebook.stem}.md" for notebook in NOTEBOOKS]


def test_notebooks_are_whole_and_keep_no_output():
    # red with outputs that were saved, which are somebody's run, or without an id of a cell
    for notebook in NOTEBOOKS:
        content = json.loads(notebook.read_text())
        assert content["nbformat"] == 4 and len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in content["cells"])
