"""Writes the pages of the site into FOLDER/pages: the Markdown of docs/, sections of the README, the notebooks, and
every option as the code has it. `make docs` builds FOLDER/html from them.

    python docs/site_pages.py build/site
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

import lightning as L
from jsonargparse import ArgumentParser
from torch.optim.lr_scheduler import LRScheduler

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.cli import main as uae
from uae_lightning.commands import COMMANDS
from uae_lightning.evaluation.judged_prompts import Benchmark
from uae_lightning.evaluation.object_detectors import ObjectDetector
from uae_lightning.evaluation.suite import Suite
from uae_lightning.interfaces import Codec, Decoder, Encoder, Engine, Projector, Reward
from uae_lightning.models.quantizers import Quantizer
from uae_lightning.policies.policy import Policy
from uae_lightning.policies.token_objectives import TokenObjective
from uae_lightning.report.captions import CaptionMarker
from uae_lightning.rewards.feature_maps import FeatureMaps
from uae_lightning.rewards.openai_chat import OpenAIChat
from uae_lightning.stages.auxiliary import Auxiliary
from uae_lightning.stages.common import Stage

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SECTIONS = {  # of the README -> page
    "Does it work?": "evidence",
    "Two commands": "demo",
    "The three stages": "stages",
    "In the browser": "browser",
    "Qwen2.5-VL, SD3.5 and other models": "models",
    "Options from related systems": "related",
    "Swapping parts": "swapping",
    "Requirements and licences": "licences",
}
PARTS = {  # what a YAML can name by class_path -> what it derives from, and where such classes lie
    "Stages": (Stage, "stages"),
    "The auto-encoder": (AutoEncoder, "autoencoder"),
    "Encoders": (Encoder, "models"),
    "Projectors": (Projector, "models"),
    "Decoders": (Decoder, "models"),
    "Codecs": (Codec, "models"),
    "Quantizers": (Quantizer, "models"),
    "Data": (L.LightningDataModule, "data", "scenes"),
    "Rewards": (Reward, "rewards", "evaluation", "scenes"),
    "Networks that rewards look through": (FeatureMaps, "rewards"),
    "Policies": (Policy, "policies"),
    "Engines for captions": (Engine, "engines"),
    "Objectives of captions": (TokenObjective, "policies"),
    "Auxiliary losses": (Auxiliary, "stages"),
    "Schedules": (LRScheduler, "stages"),
    "Callbacks": (L.Callback, "callbacks"),
    "Suites of an evaluation": (Suite, "evaluation", "scenes"),
    "Object detectors": (ObjectDetector, "evaluation", "scenes"),
    "Benchmarks with a judge": (Benchmark, "evaluation"),
    "Judges behind an endpoint": (OpenAIChat, "rewards"),
    "Markers of captions": (CaptionMarker, "scenes"),
}
WIDTH = 100  # characters of a line of options


def main(site: Path) -> None:
    folder = site / "pages"
    shutil.rmtree(site, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(DOCS / "zensical.toml", site / "zensical.toml")
    for name, text in pages().items():
        (folder / f"{name}.md").write_text(text)
    for pictures in ("results", "pictures"):
        shutil.copytree(DOCS / pictures, folder / pictures)
    for notebook in notebooks():
        shutil.copyfile(notebook, folder / notebook.name)
    if missing := list(dangling(folder)):
        raise SystemExit("links to files that are not there:\n  " + "\n  ".join(missing))


def pages() -> dict[str, str]:
    """Name -> Markdown of all pages."""
    os.environ["COLUMNS"] = str(WIDTH)  # read where help is written
    own = {file.stem: file.read_text() for file in sorted(DOCS.glob("*.md"))}
    readme = sections((ROOT / "README.md").read_text())
    sliced = {page: moved(readme[heading], heading) for heading, page in SECTIONS.items()}
    shown = {notebook.stem: page_of(notebook) for notebook in notebooks()}
    return own | sliced | shown | {"commands": commands(), "parts": parts()}


def notebooks() -> list[Path]:
    return sorted((DOCS / "notebooks").glob("*.ipynb"))


def dangling(folder: Path) -> Iterator[str]:
    """Links of pages to files beside them that are not there; Zensical looks at links to pages alone."""
    for page in sorted(folder.glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", outside_code(page.read_text())):
            if not (folder / link).is_file():
                yield f"{page.name}: {link}"


def outside_code(text: str) -> str:
    return re.sub(r"^(```.*?^```|    .*?)$", "", text, flags=re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------------------------------------ README, notebooks


def sections(text: str) -> dict[str, str]:
    """Heading -> what stands below it."""
    parts_ = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts_[1::2], parts_[2::2], strict=True))


def moved(section: str, heading: str) -> str:
    """A section of the README as a page beside those of docs/."""
    here = re.sub(r"(\[|\]\()docs/(?:notebooks/)?", r"\1", section)
    return f"# {heading}\n{here}"


def page_of(notebook: Path) -> str:
    """What a notebook says and does, with the file itself to take along."""
    cells = json.loads(notebook.read_text())["cells"]
    told = {"markdown": str, "code": functools.partial(fenced, language="python")}
    shown = [told[cell["cell_type"]]("".join(cell["source"])) for cell in cells]
    return "\n\n".join([*shown, f"The notebook itself: [{notebook.name}]({notebook.name})."]) + "\n"


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


# ------------------------------------------------------------------------------------------------ options


def commands() -> str:
    """What each command's own parser says."""
    told = [f"## uae {name}\n\n{about}\n\n{fenced(help_of(name))}\n" for name, (about, _) in COMMANDS.items()]
    start = "# Commands\n\nWritten by the commands themselves: `uae COMMAND --help`.\n"
    return "\n".join([start, *told])


def help_of(command: str) -> str:
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        uae([command, "--help"])
    return without_usage(printed.getvalue())


def without_usage(text: str) -> str:
    """The long list of options before the list that explains them is left out; a short one stays."""
    usage = re.search(r"^usage: .*?\n\n", text, re.MULTILINE | re.DOTALL)
    return text.replace(usage[0], "", 1) if usage and usage[0].count("\n") > 12 else text


def parts() -> str:
    """Classes that a YAML names by class_path, with their init_args."""
    told = ["# Parts and their options\n\nWhat YAML names by `class_path`, and its `init_args`, read from the code.\n"]
    for heading, (base, *places) in PARTS.items():
        told.append(f"## {heading}\n")
        told += [part(cls) for cls in offered(base, places)]
    return "\n".join(told)


def part(cls: type) -> str:
    return f"### {cls.__name__}\n\n`{path_of(cls)}`\n\n{fenced(options_of(cls))}\n"


def offered(base: type, places: list[str]) -> list[type]:
    """Classes that can be built, but for those that only others derive from and no YAML names."""
    found = [cls for place in places for module in modules(place) for cls in vars(module).values()
             if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__]  # fmt: skip
    built = [cls for cls in found if not inspect.isabstract(cls) and not cls.__name__.startswith("_")]
    named = "\n".join(file.read_text() for file in (ROOT / "conf").rglob("*.yaml"))
    parents = {parent for cls in built for parent in cls.__mro__[1:]}
    return [cls for cls in built if cls not in parents or f"class_path: {path_of(cls)}" in named]


def modules(place: str) -> Iterator:
    package = importlib.import_module(place if place == "callbacks" else f"uae_lightning.{place}")
    yield package
    for info in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if not info.ispkg:
            yield importlib.import_module(f"{package.__name__}.{info.name}")


def path_of(cls: type) -> str:
    """As YAMLs write it."""
    return (
        f"callbacks.{cls.__name__}" if cls.__module__.startswith("callbacks.") else f"{cls.__module__}.{cls.__name__}"
    )


def options_of(cls: type) -> str:
    """What the class is for and its init_args, as jsonargparse reads them for `--print_config` and the like."""
    parser = ArgumentParser(prog=cls.__name__, add_help=False)
    parser.add_class_arguments(cls)
    text = re.sub(r"\Ausage: .*?(\n\n|\Z)", "", parser.format_help(), flags=re.DOTALL) or "without options"
    text = re.sub(r"^  --[\w.]+\.help\b.*\n(?: {24}.*\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", text)
    text = re.sub(r"^ {24}", " " * 8, text, flags=re.MULTILINE)
    return re.sub(r"^  --([\w.]+)(?: \S+)?", r"  \1", text, flags=re.MULTILINE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
