"""What `make .venv` installs is pinned, and checked against hashes."""

import re
import subprocess
import tomllib
from pathlib import Path

from uae_lightning.commands import init

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "constraints.txt"


def test_every_package_has_a_version_and_a_hash():
    # red with a `==` changed to `>=`, a hash left out or cut, or torch, whose builds differ, put back
    packages = [*pinned(ROOT / "constraints.txt"), *pinned(SITE)]
    assert len(packages) > 80
    for package in packages:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( \\\n    --hash=sha256:[0-9a-f]{64})+", package), package[:80]
    names = {package.split("==")[0].lower() for package in packages}
    assert not names & {"torch", "torchvision", "pip"} and {"lightning", "transformers", "safetensors"} <= names


def pinned(file: Path) -> list[str]:
    """Each package with its hashes."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return re.split(r"\n(?! )", "\n".join(lines))


def test_what_builds_the_site_changes_no_other_package():
    # red with a package in both files, or the extra `docs` at another version than the pinned one allows
    both = [{line.split("==")[0] for line in pinned(file)} for file in (ROOT / "constraints.txt", SITE)]
    assert not both[0] & both[1]
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    assert any(line.startswith(wanted.replace(">=", "==") + " ") for line in pinned(SITE))


def test_they_are_installed_by_hash_alone():
    # red without --require-hashes or --no-deps; torch is named by its version
    commands = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if "$(PIP) install" in line]
    assert commands == [
        "$(PIP) install --require-hashes --no-deps -r constraints.txt",
        "$(PIP) install $(TORCH_ARGS) $(TORCH)",
        "$(PIP) install --no-deps --no-build-isolation -e .",
        "$(PIP) install --require-hashes --no-deps -r docs/constraints.txt",
    ]
    assert re.search(r"^TORCH := torch==[\d.]+$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_what_lints_is_pinned_and_types_are_shipped():
    # red with another version of mypy in one of the two files, `py.typed` left out, or a file that is not there
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    exact = [line for line in project["project"]["optional-dependencies"]["dev"] if "==" in line]
    constraints = (ROOT / "constraints.txt").read_text()
    assert exact and all(f"\n{package} \\\n" in constraints for package in exact)
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["uae_lightning"]
    assert (ROOT / "uae_lightning" / "py.typed").is_file()
    assert all((ROOT / name).exists() for name in project["tool"]["mypy"]["files"])


def test_files_that_are_no_python_are_in_the_wheel():
    # red with "exchange/templates/*" or "report/style.css" left out of package-data
    package, project = ROOT / "uae_lightning", tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = {path for glob in project["tool"]["setuptools"]["package-data"]["uae_lightning"] for path in package.glob(
        glob if not glob.endswith("**") else f"{glob}/*"
    )}  # fmt: skip
    tracked = subprocess.run(["git", "ls-files", "."], cwd=package, capture_output=True, text=True, check=True).stdout
    left_out = [name for name in tracked.split() if not name.endswith(".py") and package / name not in shipped]
    assert not left_out and tracked


def test_lint_and_types_come_before_any_run():
    # red with a command of `make lint` left out, or `make lint` behind `make smoke` in .ci/run
    commands = re.findall(r"^\t\$\(BIN\)/(ruff [a-z]+|mypy)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands == ["ruff check", "ruff format", "mypy"]
    targets = re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert targets == [".venv", "lint", "smoke", "docs", "test"]


def test_every_conf_is_in_the_wheel_where_init_looks():
    # red with a folder of conf/ that pyproject.toml does not list, or another place in `INSTALLED`
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    placed = {f"{place}/{file.name}": file for place, (pattern,) in data.items() for file in ROOT.glob(pattern)}
    conf = ROOT / "conf"
    assert placed == {f"{init.INSTALLED}/{file.relative_to(conf)}": file for file in conf.rglob("*.*")}
