"""The Dockerfile and environment.yml are read here, since neither Docker nor conda is asked: they say what the Makefile
says."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, lines that go on joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def of(steps, name: str) -> list[str]:
    return [rest for instruction, rest in steps if instruction == name]


def test_the_image_has_what_make_installs(steps):
    # red with another version of torch than the Makefile's, packages without hashes, or an unknown instruction
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT"}
    assert {name for name, _ in steps} == known
    makefile = (ROOT / "Makefile").read_text()
    torch = re.search(r"^TORCH := (\S+)$", makefile, re.MULTILINE)[1]
    assert f"TORCH={torch}" in of(steps, "ARG")
    wanted = re.findall(r"\$\(PIP\) install (--.*?)(?: -e \.)?$", makefile, re.MULTILINE)
    installs = [run.replace("--no-cache-dir ", "") for run in of(steps, "RUN")]
    assert installs[0] == f"pip install {wanted[0]}" and installs[2] == f"pip install {wanted[1]} . && pip check"
    setuptools = re.search(r"^setuptools==(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert int(setuptools[1]) >= 77  # of [build-system], since nothing is built in isolation


@pytest.mark.parametrize(("device", "index"), [("cuda", False), ("cpu", True), ("tpu", None)])
def test_the_build_argument_chooses_the_build_of_torch(steps, device, index, tmp_path):
    # red with the branches exchanged, or an unknown device that passes
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "pip").chmod(0o755)
    (run,) = [run for run in of(steps, "RUN") if "$DEVICE" in run]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DEVICE": device, "TORCH": "torch==0"}
    done = subprocess.run(["sh", "-c", run], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == (index is not None)
    assert index is None or ("whl/cpu" in done.stdout) == index and " torch==0" in done.stdout


def test_the_image_runs_uae_as_no_root(steps):
    # red without USER, or with another entry point than [project.scripts] has
    assert of(steps, "USER")[-1] != "root"
    (script,) = PROJECT["scripts"]
    assert of(steps, "ENTRYPOINT") == [f'["{script}"]']
    folder = of(steps, "WORKDIR")[-1]
    assert any(f"mkdir {folder}" in run for run in of(steps, "RUN")) and f"HOME={folder}" in of(steps, "ENV")[0]


def test_what_is_copied_is_there_and_not_ignored(steps):
    # red with a file that is not there, or with README.md in .dockerignore
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"}
    for copied in of(steps, "COPY"):
        *sources, _ = shlex.split(copied)
        for source in sources:
            assert (ROOT / source).exists() and source not in ignored, source
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in tracked.splitlines()}
    assert top - ignored == {source for copied in of(steps, "COPY") for source in shlex.split(copied)[:-1]}


def test_python_is_one_that_the_project_takes(steps):
    # red with python=3.10 in environment.yml, or FROM python:3.10-slim
    (image,) = of(steps, "FROM")
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (python,) = [str(one) for one in conda if str(one).startswith("python=")]
    version = python.removeprefix("python=")
    assert image == f"python:{version}-slim" and f"{version}.99" in SpecifierSet(PROJECT["requires-python"])


def test_conda_gets_its_packages_by_the_makefile():
    # red with a `pip:` section, which checks no hashes, without make or pip, or with a command that make does not know
    text = (ROOT / "environment.yml").read_text()
    content = yaml.safe_load(text)
    assert all(isinstance(one, str) for one in content["dependencies"]) and content["channels"] == ["conda-forge"]
    assert {"pip", "make"} <= {*content["dependencies"]}
    assert f"conda activate {content['name']}" in text and 'make packages BIN="$CONDA_PREFIX/bin"' in text
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^packages:.*##", makefile, re.MULTILINE) and "PIP = $(BIN)/python -m pip" in makefile
