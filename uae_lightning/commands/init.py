"""The command `uae init`."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

from uae_lightning.files import check_writable, making_folder
from uae_lightning.usage import Parser, UsageError

DESCRIPTION = """\
Copies the YAMLs that come with the package to FOLDER/conf, to be run and changed there.

    uae init mine && cd mine && uae run --config conf/demo.yaml

Nothing is written over. To run one as it is needs no copy: `--config demo` of any command is conf/demo.yaml, `--config
scenes/encoder_rl` that stage; those of this folder come first.
"""
INSTALLED = "share/uae-lightning/conf"  # as in pyproject.toml
CONFIG = ("--config", "-c")
NAME = re.compile(r"\w[\w-]{0,60}(/\w[\w-]{0,60})?")  # demo, scenes/encoder_rl


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


def by_name(args: list[str]) -> list[str]:
    """A command's options, `--config NAME` written out where it names a YAML of conf/."""
    return [following(before, word) for before, word in zip(["", *args], args, strict=False)]


def following(before: str, word: str) -> str:
    option, equals, value = word.partition("=")
    if option in CONFIG and equals:
        return f"{option}={written_out(value)}"
    return written_out(word) if before in CONFIG else word


def written_out(name: str) -> str:
    """The YAML of that name in conf/ here, else the shipped one; what names neither, or is a path here, as it is."""
    if not NAME.fullmatch(name) or Path(name).exists():
        return name
    here = Path("conf") / f"{name}.yaml"
    file = here if here.is_file() else shipped() / f"{name}.yaml"
    return str(file) if file.is_file() else name
