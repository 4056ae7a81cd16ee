"""Where a run keeps what.

runs/NAME/
  run.json summary.json report.html before_after.png
  evaluation/
    start.json end.json       figures of `uae evaluate` before the first and after the last stage; only if still true
    start.items.json ...      the values behind them, one per picture or prompt
  STAGE/
    stage.json                written last: its presence says that the stage is done
    config.yaml               everything the stage was run with
    validation.jsonl          one row per validation: rewards of the same held-out pictures
    checkpoints/last.ckpt     to resume this stage
    time.json                 on what the seconds were spent (callbacks.Throughput)
    weights/COMPONENT/        what the stage trained, for the next stage
    handed_on.json            of which step they are, where it is not the last one
    gallery/                  reconstructions and captions of the same few held-out pictures
    events.out.tfevents...    TensorBoard
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uae_lightning.usage import UsageError

TIME = "time.json"
HANDED_ON = "handed_on.json"
TRACKERS = "trackers.json"
LEFT_BY_A_STAGE = (
    "stage.json",
    "hparams.yaml",
    "validation.jsonl",
    "checkpoints",
    "weights",
    "weights.partial",
    "weights.previous",
    "gallery",
    "events.out.*",
    "skipped.jsonl",
    TIME,
    HANDED_ON,
    TRACKERS,
    "config.yaml",
)  # fmt: skip  in the order in which they are cleared: killed half-way, it is still the folder of a stage, and not done
WRITTEN_FIRST = "# lightning.pytorch=="  # how config.yaml begins, which is there before all else


def checkpoints(stage: str | Path | None) -> str:
    return str(Path(stage or "") / "checkpoints")


def last_checkpoint(stage: Path) -> Path:
    return stage / "checkpoints" / "last.ckpt"


def is_done(stage: Path) -> bool:
    return (stage / "stage.json").exists()


def has_content(stage: Path) -> bool:
    return any(next(stage.glob(pattern), None) for pattern in LEFT_BY_A_STAGE)


def is_stage(stage: Path) -> bool:
    """Whether a stage was trained there; a folder of somebody's own can have `weights` or `checkpoints` in it, too."""
    config = stage / "config.yaml"
    ours = ("stage.json", "clock.json", "validation.jsonl", "checkpoints/last.ckpt")
    written = config.is_file() and config.read_bytes().startswith(WRITTEN_FIRST.encode())
    return written or any((stage / name).exists() for name in ours)


def clear_stage(stage: Path) -> None:
    """Removes what a stage writes, and nothing else that may lie there.

    Raises:
        UsageError: there are things of such names, but no stage has written them.
    """
    if has_content(stage) and not is_stage(stage):
        named = next(path.name for pattern in LEFT_BY_A_STAGE for path in stage.glob(pattern))
        raise UsageError(f"{stage} has {named!r} in it, but no stage was trained there: name another folder for it")
    for pattern in LEFT_BY_A_STAGE:
        for path in stage.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def start_point(stage: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to resume from; None where the stage starts anew, in a folder that is to be cleared first.

    Raises:
        UsageError: the folder holds results, and neither `resume` nor `overwrite` says what to do with them.
    """
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite starts again: choose one")
    if resume and last_checkpoint(stage).exists():
        return last_checkpoint(stage)
    if has_content(stage) and not (resume or overwrite):
        raise UsageError(
            f"{stage} holds an earlier stage: --resume continues it, --overwrite starts it again, "
            "--trainer.default_root_dir names another folder"
        )
    return None


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """What `write_json` wrote; a ValueError that says what to do where it is damaged or lacks a key."""
    try:
        content = json.loads(path.read_text("utf-8"))
        missing = [key for key in keys if key not in content]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and `uae run --resume` writes it again") from error
    if not isinstance(content, dict) or missing:
        lacks = f"has no {missing[0]!r}" if missing else "is no mapping"
        raise ValueError(f"{path} is damaged (it {lacks}): delete it, and `uae run --resume` writes it again")
    return content


def evaluation(run: Path, moment: str) -> Path:
    """Figures of the run at its "start" or its "end"."""
    return run / "evaluation" / f"{moment}.json"


def items_of(figures: Path) -> Path:
    """Where the values behind a file of figures are: out.json -> out.items.json."""
    return figures.with_suffix(".items.json")


def clear_evaluation(run: Path, *moments: str) -> None:
    for moment in moments:
        figures = evaluation(run, moment)
        for path in (figures, items_of(figures)):  # figures without items never lie there, see `uae evaluate`
            path.unlink(missing_ok=True)


def parse_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a validation.jsonl as they stand there, but for half a line at the end: of a process that was killed.

    Raises:
        ValueError: another line is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
            row["step"] + 0
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                return
            raise ValueError(f"line {number} of {path} is damaged: repeat the stage {path.parent.name}") from error
        yield row


def read_rows(stage: Path) -> list[dict[str, Any]]:
    """Validation rows in order of steps. A killed and resumed stage repeats some: the later one counts.

    Raises:
        FileNotFoundError: the stage was not validated.
        ValueError: the file is damaged.
    """
    path = stage / "validation.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: add callbacks.RewardCallback to trainer.callbacks")
    rows = {row["step"]: row for row in parse_rows(path)}
    if is_done(stage):
        last = read_json(stage / "stage.json").get("step")
        whole = all(row.keys() >= {"keys", "reward", "caption_tokens"} for row in rows.values())
        if not (rows and whole) or (last is not None and last not in rows):
            raise ValueError(f"{path} is damaged: it lacks rows, or parts of them; repeat the stage {stage.name}")
    return [rows[step] for step in sorted(rows)]


def final_row(stage: Path) -> dict[str, Any]:
    """The validation row of the weights that the stage hands on: the last one unless it says otherwise."""
    rows = read_rows(stage)
    step = handed_on_step(stage)
    return next((row for row in rows if row["step"] == step), rows[-1])


def handed_on_step(stage: Path) -> int | None:
    """None where it is the last one, or not known yet."""
    file = stage / HANDED_ON
    return read_json(file, "step")["step"] if file.exists() else None


def comparable(stages: list[Path]) -> list[Path]:
    """The stages that were validated on the same pictures as the last: one that trains from a cache without an encoder
    draws samples of the cache instead, and its numbers are of another kind."""
    first = {stage: set(read_rows(stage)[0]["keys"]) for stage in stages}
    return [stage for stage in stages if first[stage] == first[stages[-1]]]


def latest_weights(stages: list[Path]) -> dict[str, Path]:
    """Folder of the latest weights of each component that any of the stages has written."""
    found: dict[str, Path] = {}
    for stage in stages:
        found |= {path.name: path for path in sorted((stage / "weights").glob("*")) if path.is_dir()}
    return found


def stages_of(run: Path) -> list[Path]:
    """The stage folders that exist, in the order of the run.

    Raises:
        FileNotFoundError: it is not the folder of a run.
    """
    if not (run / "run.json").exists():
        raise FileNotFoundError(f"{run} is not the folder of a run (no run.json): name one that `uae run` wrote")
    return [run / name for name in read_json(run / "run.json", "stages")["stages"] if has_content(run / name)]


def trained_stages(folder: Path) -> list[Path]:
    """Of a run's folder its stages, as `stages_of`; of a stage's, such as `uae fit` leaves, that one alone."""
    alone = is_stage(folder) and not (folder / "run.json").exists()
    return [folder] if alone else stages_of(folder)
