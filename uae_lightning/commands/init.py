"""The command `uae init`."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from uae_lightning.files import check_writable, making_folder
from uae_lightning.usage import Parser, UsageError

DESCRIPTION = """\
Copies the YAMLs that come with the package to FOLDER/conf, to be run and changed there.

    uae init mine && cd mine && uae run --config conf/demo.yaml

Nothing is written over.
"""
INSTALLED = "share/uae-lightning/conf"  # as in pyproject.toml


def main(args: list[str]) -> None:
    parser = Parser(prog="uae init", description=DESCRIPTION)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where conf goes; it is made where it is missing")
    target = parser.parse(args).folder / "conf"
    if target.exists():
        raise UsageError(f"{target} is there already, and nothing is written over: name another folder")
    check_writable(target, "FOLDER")
    with making_folder(target) as partial:
        shutil.copytree(shipped(), partial, dirs_exist_ok=True)
    print(f"{target}: {sum(1 for _ in target.rglob('*.yaml'))} files; try `uae run --config conf/demo.yaml` beside it")


def shipped() -> Path:
    """Where the YAMLs lie: in a checkout beside the package, else where its wheel put them.

    Raises:
        FileNotFoundError: the installation is not whole.
    """
    root = Path(__file__).parents[2]
    places = [root / "conf", root / INSTALLED]  # the second is where `pip install --target` puts them
    try:
        files = metadata.files("uae-lightning") or []
    except metadata.PackageNotFoundError:
        files = []
    places += [Path(file.locate()).parent for file in files if file.match(f"{INSTALLED}/demo.yaml")]
    for place in places:
        if (place / "demo.yaml").is_file():
            return place
    raise FileNotFoundError("the YAMLs did not come with this installation: install uae-lightning again")
