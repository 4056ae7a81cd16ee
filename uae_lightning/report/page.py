"""report.html: what a run did, for a person to look at. One file, no scripts; works for a run that is not finished."""

from __future__ import annotations

import re
import shlex
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.report.captions import CaptionMarker
from uae_lightning.report.charts import Band, Line, line_chart, smoothed
from uae_lightning.report.evaluation import evaluation_section
from uae_lightning.report.losses import losses_section
from uae_lightning.report.pictures import Column, before_after, drawn, gallery, gallery_columns, hero_section
from uae_lightning.report.stages import StageView, duration, read_stages, signed, stage_table
from uae_lightning.report.summary import paired_gain
from uae_lightning.run import folder as run_folder
from uae_lightning.run.masking import masked_text

STYLE = Path(__file__).with_name("style.css").read_text("utf-8")
BLUE, GREEN, ORANGE = "#2563a8", "#2f7d4f", "#b4632a"
APP = "http://127.0.0.1:7860"  # where `uae app` listens, unless that port is taken
HERE, END = '<section class="here">', "</section>"  # around what only this machine's user is to see

TRAINING_CURVES = ("train/loss", "train/reward", "train/reward_std", "train/grad_norm")  # and policy/*
MEANING = {  # what a training curve says, by the last part of its name
    "loss": "What the optimiser minimises; in RL its size means little.",
    "reward": "Mean reward of the training batch.",
    "reward_std": "Spread of the rewards in a batch: what an advantage is made of.",
    "ratio": "New over old probability of the samples; 1 is on policy.",
    "ratio_mean": "New over old probability of the samples; 1 is on policy.",
    "ratio_max": "The largest change of a probability since sampling.",
    "clip_fraction": "Share of terms whose ratio was clipped.",
    "kl_reference": "Distance from the policy the stage started from.",
    "velocity_norm_ratio": "Size of the velocities against those of the start; where it grows, pictures get harsh.",
    "gate": "What SAPO leaves of the gradients; 1 is on policy.",
    "entropy": "How undecided the policy is; a fall to 0 is a collapse.",
    "zero_variance_share": "Share of groups with equal rewards, which teach nothing.",
    "caption_tokens": "Mean caption length in the training batch.",
    "first_log_ratio": "Must be near 0: sampling and replay are the same policy.",
    "grad_norm": "Gradient norm before clipping.",
    "empty_captions": "Share of captions without a word.",
    "cut_captions": "Share of captions cut at the length limit.",
    "skipped_groups": "Groups passed over for a reward that is NaN or infinite.",
    "skipped_step": "1 where gradients overflowed in float16 and the step was not taken.",
}


def write_report(run: Path, marker: CaptionMarker = CaptionMarker()) -> Path:  # noqa: B008
    """Writes report.html and before_after.png into the folder of a run and returns the former.

    Args:
        marker: of the captions; by default they are shown as they are.

    Raises:
        FileNotFoundError: it is not the folder of a run.
    """
    record = run_folder.read_json(run / "run.json") if run_folder.stages_of(run) else {}
    stages = read_stages(run)
    if not stages:
        raise FileNotFoundError(f"{run}: no stage has been validated yet, there is nothing to report")
    folders = run_folder.comparable([stage.folder for stage in stages])
    compared, columns = [stage for stage in stages if stage.folder in folders], gallery_columns(folders)
    hero = before_after(columns)
    if hero:
        hero.save(run / "before_after.png")
    sections = [
        header(record, stages),
        here(in_the_app(run)),
        hero_section(hero),
        cards(stages, compared),
        not_compared(stages, compared),
        gallery(columns, marked_captions(columns, compared, marker), marker.legend),
        evaluation(run),
        stage_table(stages),
        validation_charts(stages),
        training_charts(stages),
        here(provenance(record, stages)),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>UAE: {escape(record["name"])}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>\n{STYLE}</style></head>\n'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def here(section: str) -> str:
    return f"{HERE}{section}{END}"


def for_others(page: str) -> str:
    """A report without commands, settings and paths, for who may look at the run and not at the machine.

    Raises:
        ValueError: the report is of a version that did not mark them.
    """
    shown, removed = re.subn(f"{re.escape(HERE)}.*?{re.escape(END)}", "", page, flags=re.DOTALL)
    if removed < 2:
        raise ValueError("the report was written by an older version: `uae run --resume` writes it again")
    return shown


# ------------------------------------------------------------------------------------------------ words and numbers


def in_the_app(run: Path) -> str:
    """How the run is opened in the browser: a page cannot start a server, so there is a command to copy."""
    link = f"{APP}/?run={quote(run.resolve().name)}"
    return (
        '<p class="muted">To draw with this run, compare its stages and edit captions: '
        f'<code class="copy">uae app {escape(shlex.quote(str(run)))}</code>, and then <a href="{escape(link)}">open it '
        "in the browser</a> (the command prints another address where port 7860 is taken).</p>"
    )


def header(record: dict[str, Any], stages: list[StageView]) -> str:
    done = sum(stage.record is not None for stage in stages)
    state = "finished" if done == len(record["stages"]) else f"{done} of {len(record['stages'])} stages finished so far"
    return (
        f"<h1>One image &rarr; caption &rarr; image auto-encoder</h1>"
        f'<p class="muted">Run <b>{escape(record["name"])}</b>, {state}, {escape(record["written"])}. Rewards are '
        f"measured on {len(stages[0].rows[0]['reward'])} held-out pictures that no stage has trained on; brackets are "
        f"95% bootstrap intervals over these pictures.</p>"
    )


def cards(stages: list[StageView], compared: list[StageView]) -> str:
    first, last = compared[0].rows[0], run_folder.final_row(compared[-1].folder)
    seconds = sum(stage.record["seconds"] for stage in stages if stage.record)
    items = []
    for measure, title in [("reward", "reward"), ("unrewarded", "not rewarded")]:
        if measure in first:
            gain = paired_gain(first, last, measure)
            items.append((f"{last[f'{measure}_name']} ({title})", signed(gain), span(gain)))
    tokens = [sum(row["caption_tokens"]) / len(row["caption_tokens"]) for row in (first, last)]
    items.append(("Caption length", f"{tokens[0]:.1f} &rarr; {tokens[1]:.1f}", "tokens, start and now"))
    items.append(("Time", duration(seconds), "training and validation"))
    blocks = [f'<div class="card"><span>{escape(a)}</span><b>{b}</b><span>{c}</span></div>' for a, b, c in items]
    return f'<div class="cards">{"".join(blocks)}</div>'


def not_compared(stages: list[StageView], compared: list[StageView]) -> str:
    names = ", ".join(stage.name for stage in stages if stage not in compared)
    if not names:
        return ""
    return (
        f'<p class="muted">Not among the pictures, and not in the gain of the run: {escape(names)}, validated on other '
        "pictures than the last stage, such as samples of a cache drawn from the captions they have.</p>"
    )


def evaluation(run: Path) -> str:
    """Nothing where start and end of the run have not both been evaluated."""
    summary = run_folder.read_json(run / "summary.json") if (run / "summary.json").exists() else {}
    if "evaluation" not in summary:
        return ""
    return evaluation_section(summary["evaluation"]) + losses_section(summary["evaluation"])


def marked_captions(columns: list[Column], compared: list[StageView], marker: CaptionMarker) -> list[list[str]]:
    """Of each picture its captions along the run, as Markdown."""
    keys = compared[0].rows[0]["keys"]
    data = (yaml.safe_load((compared[0].folder / "config.yaml").read_text("utf-8")) or {}).get("data", {})
    along = zip(*(column.captions for column in drawn(columns)), strict=True)
    return [marker.mark(captions, key, data) for captions, key in zip(along, keys, strict=False)]


def span(gain: dict[str, float]) -> str:
    return f"[{gain['low']:+.4f}, {gain['high']:+.4f}], n = {gain['n']}"


def provenance(record: dict[str, Any], stages: list[StageView]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    blocks = []
    for stage in stages:
        config = stage.folder / "config.yaml"
        text = masked_text(config.read_text()) if config.exists() else ""
        seed = (yaml.safe_load(text) or {}).get("seed_everything", "?")
        command = stage.record["command"] if stage.record else "(written when the stage is done)"
        blocks.append(
            f"<details><summary><b>{escape(stage.name)}</b>, seed {escape(str(seed))}: its command and configuration"
            f"</summary><pre>{escape(masked_text(command))}</pre><pre>{escape(text)}</pre></details>"
        )
    return (
        "<h2>What was run</h2><p>The first command repeats the whole run, that of a stage repeats it alone.</p>"
        f'<pre>{escape(masked_text(record["command"]))}</pre><p class="muted">{escape(versions)}</p>{"".join(blocks)}'
    )


# ------------------------------------------------------------------------------------------------ curves


def validation_charts(stages: list[StageView]) -> str:
    last = stages[-1].rows[-1]
    charts = [
        ("reward", f"Held-out reward: {last['reward_name']}", "What the RL stages maximise, on unseen pictures.", BLUE),
        ("caption_tokens", "Caption length in tokens", "What the encoder spends to say it.", ORANGE),
    ]
    if "unrewarded" in last:
        text = "A measure that no stage was rewarded for: where it rises too, the gain is no trick on the reward."
        charts.insert(1, ("unrewarded", f"Not rewarded: {last['unrewarded_name']}", text, GREEN))
    bands = [Band(stage.offset, stage.offset + max(stage.steps, 1), stage.name) for stage in stages]
    blocks = [
        f'<div class="chart"><h4>{escape(title)}</h4><p>{escape(text)}</p>'
        f"{line_chart([validation_line(stage, measure, color) for stage in stages], bands=bands, label=title)}</div>"
        for measure, title, text, color in charts
    ]
    return (
        "<h2>Along the run</h2><p>Optimiser steps of the stages one after the other; the light area is the 95% "
        f"interval of the mean.</p>{''.join(blocks)}"
    )


def validation_line(stage: StageView, measure: str, color: str) -> Line:
    intervals = [mean_interval(row[measure]) for row in stage.rows]
    xs = [stage.offset + row["step"] for row in stage.rows]
    mean, low, high = ([interval[key] for interval in intervals] for key in ("mean", "low", "high"))
    return Line(xs, mean, low, high, color=color, dots=True)


def training_charts(stages: list[StageView]) -> str:
    blocks = []
    for stage in stages:
        curves = training_curves(stage.folder)
        if curves:
            charts = "".join(small_chart(tag, *curve) for tag, curve in curves.items())
            blocks.append(f'<h3>{escape(stage.name)}</h3><div class="small">{charts}</div>')
    if not blocks:
        return ""
    return (
        "<h2>Inside the stages</h2><p>Curves of the training itself, from the TensorBoard files: every step in pale, "
        f"its running mean in full colour.</p>{''.join(blocks)}"
    )


def training_curves(stage: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Loss, reward and the signs of the policy's health: tag -> (steps, values). A later event of a step wins."""
    curves = {}
    for file in sorted(stage.glob("events.out.*")):  # one for each time the stage was resumed
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag in TRAINING_CURVES or tag.startswith("policy/"):
                curves.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    order = sorted(curves, key=lambda tag: (tag.startswith("policy/"), tag))
    return {tag: (sorted(curves[tag]), [curves[tag][step] for step in sorted(curves[tag])]) for tag in order}


def small_chart(tag: str, steps: list[int], values: list[float]) -> str:
    weight = 0.9 if len(values) > 60 else 0.7
    lines = [Line(steps, values, opacity=0.25), Line(steps, smoothed(values, weight))]
    text = MEANING.get(tag.split("/")[-1], "")
    chart = line_chart(lines, width=320, height=150, label=tag)
    return f'<div class="chart"><h4>{escape(tag)}</h4><p>{escape(text)}</p>{chart}</div>'
