"""Runs: what each run below the given folders has come to, and the whole of one, also while it trains."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from html import escape
from pathlib import Path

from uae_lightning.app.errors import in_words
from uae_lightning.app.run_folders import Signature, signature
from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.report.captions import CaptionMarker
from uae_lightning.report.page import (
    STYLE,
    StageView,
    cards,
    marked_captions,
    not_compared,
    read_stages,
    stage_table,
    training_charts,
    validation_charts,
)
from uae_lightning.report.pictures import gallery, gallery_columns
from uae_lightning.run import folder as run_folder

AT_WORK = 600  # seconds after the last file was written in which a run that is not done counts as under way
PAGES = 8  # that are kept


@dataclass(frozen=True)
class RunState:
    """A line of the table."""

    name: str
    state: str
    stages: str
    reward: str
    changed: float  # seconds since 1970


def state_of(name: str, run: Path, now: float | None = None) -> RunState:
    """What can be said of a run without reading its curves; of a damaged one what is wrong with it."""
    changed = max((file[1] / 1e9 for file in signature(run)), default=0.0)
    try:
        planned, stages = run_folder.read_json(run / "run.json", "stages")["stages"], read_stages(run)
        done = sum(stage.record is not None for stage in stages)
        recent = (time.time() if now is None else now) - changed < AT_WORK
        state = "done" if done == len(planned) else "under way" if recent else "stopped"
        working = next((stage.name for stage in stages if stage.record is None), "")
        stage = f"{done} of {len(planned)}" + (f", now {working}" if working else "")
        return RunState(name, state, stage, reward_of(stages), changed)
    except (ValueError, OSError, KeyError, TypeError) as error:
        return RunState(name, f"cannot be read: {in_words(error)}", "", "", changed)


def reward_of(stages: list[StageView]) -> str:
    """Mean held-out reward, first -> last."""
    compared = [stage for stage in stages if stage.folder in comparable(stages)]
    if not compared:
        return ""
    first, last = (mean_interval(row["reward"])["mean"] for row in (compared[0].rows[0], compared[-1].rows[-1]))
    return f"{first:.4f} → {last:.4f}"


def comparable(stages: list[StageView]) -> list[Path]:
    return run_folder.comparable([stage.folder for stage in stages]) if stages else []


class RunPages:
    """Pages of runs: of one that has nothing new the page that was made before."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Signature, str] = OrderedDict()

    def page(self, run: Path) -> str:
        """A whole HTML document: rewards, curves and gallery; no command, no setting and no path of the run."""
        key = signature(run)
        if key not in self.kept:
            self.kept[key] = document(run)
            while len(self.kept) > PAGES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]


def document(run: Path) -> str:
    try:
        stages = read_stages(run)
        body = (
            sections(stages) if stages else "<p>No stage has been validated yet: there is nothing to show so far.</p>"
        )
    except (ValueError, OSError, KeyError, TypeError) as error:
        body = f"<p>This run cannot be shown: {escape(in_words(error))}</p>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><style>{STYLE} main {{ padding: 8px 4px }}</style>'
        f"</head><body><main>{body}</main></body></html>"
    )


def sections(stages: list[StageView]) -> str:
    folders = comparable(stages)
    compared, columns = [stage for stage in stages if stage.folder in folders], gallery_columns(folders)
    return "".join(
        [
            cards(stages, compared),
            not_compared(stages, compared),
            stage_table(stages),
            validation_charts(stages),
            gallery(columns, marked_captions(columns, compared, CaptionMarker())),
            training_charts(stages),
        ]
    )
