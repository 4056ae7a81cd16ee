"""The wheel, built from what the Docker image is built from, and used in an empty folder away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import uae_lightning

ROOT = Path(__file__).parents[2]
AWAY = """
import sys
from pathlib import Path

import callbacks
import uae_lightning
from uae_lightning.cli import main

assert all(Path(one.__file__).is_relative_to(sys.argv[1]) for one in (callbacks, uae_lightning)), sys.path
for command in (
    ["init", "mine"],
    ["plan", "--config", "scenes/decoder_pretrain", "--card=24", "--tflops=1"],
    ["fit", "--config=scenes/decoder_pretrain", "--trainer.default_root_dir=runs/one", "--trainer.max_steps=2",
     "--trainer.val_check_interval=2", "--data.init_args.batch_size=2", "--data.init_args.validation_pictures=2",
     "--data.init_args.validation_batch_size=2"],
    ["generate", "a red cat at the center", "--steps=1"],
):
    assert main(command) == 0, command
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the files that .dockerignore leaves of those that git knows or would add."""
    place = tmp_path_factory.mktemp("wheel")
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"}
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if name.split("/")[0] not in ignored and (ROOT / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / "source" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={place}", str(place / "source"))
    return next(place.glob("*.whl"))


def pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *args, "--no-index"]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_the_wheel_has_package_weights_and_yamls_and_no_tests(wheel):
    # red with "scenes/weights/**" or a folder of conf/ left out of pyproject.toml, or with tests found as a package
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entries,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert "uae = uae_lightning.cli:main" in entries and wheel.stat().st_size < 40e6
    data, info = (f"{wheel.name.split('-py3')[0]}.{suffix}" for suffix in ("data", "dist-info"))
    assert {name.split("/")[0] for name in names} == {"callbacks", "uae_lightning", data, info}
    conf = {str(file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*") if file.is_file()}
    assert {name.split("share/uae-lightning/")[1] for name in names if name.startswith(data)} == conf
    for part in ("encoder", "projector", "decoder", "clip", "detector"):
        weights = ROOT / "uae_lightning" / "scenes" / "weights" / part
        assert {str(file.relative_to(ROOT)) for file in weights.rglob("*") if file.is_file()} <= {*names}, part
    assert any(name.endswith("glyphs/LICENSE") for name in names if name.startswith(info))


def test_its_version_is_that_of_the_code_and_of_the_changelog(wheel):
    # red with a new version in one of pyproject.toml, __init__.py and CHANGELOG.md
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert wheel.name.split("-")[1] == uae_lightning.__version__ == heading[1]


def test_it_plans_trains_and_draws_in_an_empty_folder(wheel, tmp_path):
    # red with weights or YAMLs that are looked up beside the checkout, or if the commands need a conf/ here
    pip("install", "--no-deps", f"--target={tmp_path / 'installed'}", str(wheel))
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AWAY, str(tmp_path / "installed")]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = tmp_path / "empty"
    assert (made / "runs/one/weights").is_dir() and (made / "generated.png").is_file()
    assert (made / "mine/conf/launch/skypilot.yaml").is_file() and "fits 24 GB" in done.stdout
