"""How a run stands, live or ended, read from its folder alone: nothing of it is touched, and no model is loaded."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from uae_lightning.parallel.locking import LOCK
from uae_lightning.run import folder as run_folder

HOLDER = re.compile(r"process (\d+) on (\S+)")
SCALARS = 200  # of a curve, evenly, the last included
RECENT = 10  # batches by whose time the rest is estimated
BAR = 12  # characters


@dataclass(frozen=True)
class StageState:
    """Of one stage; what is not known yet is None.

    Args:
        state: "done", "under way", "stopped" or "waiting".
        step, steps: of the optimiser.
        reward: of the last training batch.
        held_out: mean reward of the first and of the last validation.
        seconds: that it took, or are left.
        caption: the last that was written for the first held-out picture.
        setting_up: what comes before its first step, while that is done, and for how many seconds it has been.
    """

    name: str
    state: str
    step: int = 0
    steps: int | None = None
    reward: float | None = None
    held_out: tuple[float, float] | None = None
    seconds: float | None = None
    caption: str | None = None
    setting_up: tuple[str, float] | None = None


@dataclass(frozen=True)
class RunState:
    name: str
    state: str  # "running", "finished" or "stopped"
    stages: list[StageState]
    command: str | None  # that goes on with it
    judging: tuple[str, float] | None = None  # "the start" or "the end" of the run, and for how many seconds


def look_at(folder: Path) -> RunState:
    """The state of a run, or of a stage that `uae fit` trains.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: what says so is damaged.
    """
    running = is_held(folder / LOCK)
    began = written(folder / LOCK)
    if run_folder.is_stage(folder) or (running and not (folder / "run.json").exists()):  # `uae fit` that still loads
        done = (folder / "weights").is_dir() and not running
        stages = [stage_state(folder, running=running, done=done, began=began)]
        return RunState(folder.name, overall(stages, running), stages, None)
    run_folder.stages_of(folder)  # says what is wrong
    record = run_folder.read_json(folder / "run.json", "name", "stages", "command")
    names = record["stages"]
    current = next((name for name in names if not run_folder.is_done(folder / name)), None)
    ended = [folder / name / "stage.json" for name in names if run_folder.is_done(folder / name)]
    before = max(began, *map(written, ended), 0.0)
    judging = judged_now(folder, before, current, names) if running and record.get("judged") else None
    began = max(before, written(run_folder.evaluation(folder, "start")))
    stages = [
        stage_state(
            folder / name, running=running and not judging and name == current,
            done=run_folder.is_done(folder / name), began=began,
        )
        for name in names
    ]  # fmt: skip
    words = [word for word in record["command"].split(" ") if word not in ("--resume", "--overwrite")]
    return RunState(record["name"], overall(stages, running), stages, " ".join([*words, "--resume"]), judging)


def judged_now(run: Path, before: float, current: str | None, names: list[str]) -> tuple[str, float] | None:
    """Which of its two evaluations a run that is judged works on, and for how long: before its first stage, or after
    the last, as long as there are no figures.

    Args:
        before: when what comes before it had ended, in seconds since 1970.
        current: stage that is not done; None where all are.
    """
    moment = "end" if current is None else "start"
    under_way = current not in (None, names[0]) or written(run / names[0] / "config.yaml") > before
    if under_way or run_folder.evaluation(run, moment).exists():
        return None
    return f"the {moment}", ago(before)


def written(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def ago(moment: float) -> float:
    """Seconds; clocks of two machines may differ."""
    return max(0.0, time.time() - moment)


def overall(stages: list[StageState], running: bool) -> str:
    if running:
        return "running"
    return "finished" if all(stage.state == "done" for stage in stages) else "stopped"


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock of a folder; of one on another machine, that it did not end in an orderly way
    cannot be seen. The lock itself is not tried: the process that takes it at that moment would be refused."""
    try:
        found = HOLDER.search(lock.read_text("utf-8", errors="replace"))
    except OSError:
        return False
    if found is None:
        return False
    if found[2] != socket.gethostname():
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# ------------------------------------------------------------------------------------------------ one stage


def stage_state(folder: Path, *, running: bool, done: bool, began: float) -> StageState:
    """`began`: when its process, or the stage before it, let it begin, in seconds since 1970."""
    if not running and not done and not run_folder.has_content(folder):
        return StageState(folder.name, "waiting")
    state = "done" if done else "under way" if running else "stopped"
    config = read_config(folder / "config.yaml")
    rows = sorted(validations(folder), key=lambda row: row["step"])
    means = [sum(row["reward"]) / len(row["reward"]) for row in (rows[0], rows[-1])] if rows else None
    events = read_events(folder)
    per_batch = steps_per_batch(config)
    batches = max((event.step for event in events["train/loss"]), default=-1) + 1
    step = max(batches * per_batch, rows[-1]["step"] if rows else 0)
    steps = config.get("trainer", {}).get("max_steps")
    steps = steps if isinstance(steps, int) and steps > 0 else None
    seconds = None
    if done:
        record = folder / "stage.json"
        seconds = run_folder.read_json(record, "seconds")["seconds"] if record.exists() else None
    elif running and steps is not None:
        seconds = seconds_left(events["train/loss"], (steps - step) / per_batch)
    rewards = [event.value for event in events["train/reward"]]
    return StageState(
        folder.name, state, step, steps, rewards[-1] if rewards else None, tuple(means) if means else None, seconds,
        last_caption(folder), setting_up(folder, began, bool(rows), step) if running else None,
    )  # fmt: skip


def setting_up(folder: Path, began: float, validated: bool, step: int) -> tuple[str, float] | None:
    """What a stage under way does before its first step, and for how many seconds it has done so.

    Its configuration is written once all is loaded, and a validation comes before all steps.
    """
    loaded = written(folder / "config.yaml")
    if loaded < began:
        return "loading models and data", ago(began)
    if step > 0:
        return None
    if not validated:
        return "first validation", ago(loaded)
    return "first batch", ago(written(folder / "validation.jsonl"))


def read_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # it is there once the stage has begun
    return content if isinstance(content, dict) else {}


def validations(folder: Path) -> list[dict[str, Any]]:
    path = folder / "validation.jsonl"
    return [row for row in run_folder.parse_rows(path) if row.get("reward")] if path.exists() else []


def steps_per_batch(config: dict[str, Any]) -> int:
    """Optimiser steps in a batch, under whose number TensorBoard's curves stand."""
    options = config.get("model", {}).get("init_args", {})
    return max(1, (options.get("updates_per_batch") or 1) * (options.get("update_parts") or 1))


def read_events(folder: Path) -> dict[str, list[ScalarEvent]]:
    """Of the loss and the reward of each batch. A file that ends in half an event is read up to there."""
    found: dict[str, list[ScalarEvent]] = {"train/loss": [], "train/reward": []}
    for file in sorted(folder.glob("events.out.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": SCALARS, "tensors": 1, "images": 1})
        events.Reload()
        for tag in found.keys() & set(events.Tags()["scalars"]):
            found[tag] += events.Scalars(tag)
    return found


def seconds_left(batches: list[ScalarEvent], left: float) -> float | None:
    """By the last batches; validations between them count."""
    recent = batches[-RECENT - 1 :]
    if len(recent) < 2 or recent[-1].step <= recent[0].step:
        return None
    return max(0.0, left) * (recent[-1].wall_time - recent[0].wall_time) / (recent[-1].step - recent[0].step)


def last_caption(folder: Path) -> str | None:
    file = folder / "gallery" / "captions.json"
    if not file.exists():
        return None
    captions = run_folder.read_json(file)
    return captions[max(captions, key=int)][0] if captions else None


# ------------------------------------------------------------------------------------------------ for a terminal


def lines_of(run: RunState, width: int = 100) -> list[str]:
    """A line for each stage, and the last caption below the one under way."""
    judging = f", judging {run.judging[0]} for {spoken(run.judging[1])} so far" if run.judging else ""
    lines = [f"{run.name}: {run.state}{judging}"]
    latest = next((stage for stage in reversed(run.stages) if stage.caption), None)
    for number, stage in enumerate(run.stages, 1):
        lines.append(f"  [{number}/{len(run.stages)}] {stage.name:18} {', '.join(filter(None, words(stage)))}")
        if stage is latest:
            lines.append(f'        "{stage.caption}"')
    if run.state == "stopped" and run.command:
        lines.append(f"  goes on with: {run.command}")
    return [line if len(line) <= width else line[: width - 3] + "..." for line in lines]


def words(stage: StageState) -> list[str]:
    if stage.state == "waiting":
        return ["waiting"]
    if stage.setting_up is not None:
        shown = [f"{stage.setting_up[0]} for {spoken(stage.setting_up[1])} so far"]
    else:
        shown = ["done" if stage.state == "done" else bar(stage.step, stage.steps)]
    if stage.seconds is not None:
        took = stage.state == "done"
        shown.append(f"{spoken(stage.seconds)}" if took else f"about {spoken(stage.seconds)} left")
    if stage.reward is not None and stage.state != "done":
        shown.append(f"reward {stage.reward:.3f}")
    if stage.held_out is not None:
        first, last = stage.held_out
        shown.append(f"held out {first:.4f}" + f" -> {last:.4f}" * (last != first))
    if stage.state == "stopped":
        shown.append("stopped")
    return shown


def bar(step: int, steps: int | None) -> str:
    if steps is None:
        return f"step {step}"
    filled = round(BAR * min(1.0, step / steps))
    return f"{'#' * filled}{'-' * (BAR - filled)} {step}/{steps}"


def spoken(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
