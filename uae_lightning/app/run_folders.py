"""The runs below the folders that the app was given, by names that say nothing of where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uae_lightning.run import folder as run_folder
from uae_lightning.usage import UsageError

DEPTH = 3  # folders below a given one in which runs are looked for: a study has runs/STUDY/ARM/SEED
MOST_RUNS = 200
Signature = tuple[tuple[str, int, int], ...]
TOLD = ("run.json", "summary.json", "*/stage.json", "*/validation.jsonl", "*/gallery/captions.json", "*/events.out.*",
        "report.html")  # fmt: skip


@dataclass(frozen=True)
class RunFolders:
    """Each given folder is that of a run, or has some below it.

    Raises:
        UsageError: one does not exist.
    """

    given: Sequence[Path]

    def __post_init__(self) -> None:
        for folder in self.given:
            if not folder.is_dir():
                raise UsageError(f"RUN_FOLDER {folder} is no folder: name that of a run, or one that has runs in it")

    def find(self) -> dict[str, Path]:
        """Name -> folder of each run, as they are now; new ones appear while the app is open."""
        found: dict[str, Path] = {}
        for number, folder in enumerate(self.given):
            for run in runs_below(folder.resolve(), DEPTH):
                relative = run.relative_to(folder.resolve())
                name = relative.as_posix() if relative.parts else folder.resolve().name
                found.setdefault(name if name not in found else f"{name} ({number + 1})", run)
                if len(found) == MOST_RUNS:
                    return found
        return found

    def named(self, name: str) -> Path:
        """The folder of a run; a UsageError where there is none of that name (any more)."""
        if name not in (found := self.find()):
            raise UsageError(f"there is no run {name!r} (any more): choose another")
        return found[name]

    def called(self, name: str) -> str:
        """The name of a run here, by that of its folder: a link in a report does not know which folders were given.

        Raises:
            UsageError: no run is called so, or several are.
        """
        found = self.find()
        if name in found:
            return name
        alike = [one for one in found if one.rpartition("/")[2] == name]
        if len(alike) != 1:
            several = f"several runs are called {name!r}" if alike else f"there is no run {name!r} here"
            raise UsageError(f"{several}: choose one below, or start `uae app` with the folder of that run")
        return alike[0]


def runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """A run has no runs in it. Links are not followed: they could lead out of the folder."""
    if (folder / "run.json").is_file():
        yield folder
    elif depth:
        try:
            inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:  # it may not be read, or is gone by now
            return
        for path in inner:
            yield from runs_below(path, depth - 1)


def report_of(run: Path) -> Path | None:
    """The report that lies in the folder itself, where there is one yet."""
    path = run / "report.html"
    return path if path.is_file() and not path.is_symlink() else None


def signature(run: Path) -> Signature:
    """Changes whenever there is something new to tell of a run."""
    found = []
    for path in (path for pattern in TOLD for path in sorted(run.glob(pattern))):
        try:
            about = path.stat()
        except OSError:  # gone between the two calls
            continue
        found.append((str(path), about.st_mtime_ns, about.st_size))
    return tuple(found)


def finished(run: Path) -> list[Path]:
    """Folders of the stages that are done, in the order of the run."""
    return [stage for stage in run_folder.stages_of(run) if run_folder.is_done(stage)]
