"""results.md, results.json and their figures: a section for each study, made from its evaluations and runs alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from uae_lightning.files import write_json
from uae_lightning.report.captions import CaptionMarker
from uae_lightning.report.charts import Band
from uae_lightning.report.pictures import Column
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import build
from uae_lightning.study import results
from uae_lightning.study.claims import START, Figure, worsened
from uae_lightning.study.figures import bars, columns_along, contact_sheet, curves, track
from uae_lightning.study.jobs import Desk
from uae_lightning.study.plan import Study
from uae_lightning.study.results import Outcome

HEAD = """\
# Results

Made by `uae study`, never by hand; `results.json` beside it holds the same numbers and more. Brackets are 95% bootstrap
intervals over held-out items and, where there are several, over training seeds; a gain compares every item with itself.
A handful of seeds says little about how seeds vary, so the gain of each is listed too.
"""
PICTURES = 4  # whose captions are printed


def write_results(study: Study, place: Path, desk: Desk, output: Path, command: str) -> Path:
    """Renews this study's part of OUTPUT/results.md, results.json and results/; returns the page."""
    found = results.outcomes(study, place, desk)
    if not found:
        raise ValueError(f"{place} has no arm that was evaluated with these settings: run the study without --report")
    part = results.part_of(study, place, desk, found, command)
    (output / "results").mkdir(parents=True, exist_ok=True)
    text, page = section(study, found, part, output / "results"), output / "results.md"
    write_json(output / "results.json", results.merged(output / "results.json", part), indent=None)
    page.write_text(renewed(page.read_text() if page.exists() else HEAD, study.name, text), encoding="utf-8")
    return page


def renewed(page: str, name: str, text: str) -> str:
    """The page with the section of one study replaced, or added at its end."""
    start, end = f"<!-- study {name} -->", f"<!-- end of {name} -->"
    block = f"{start}\n{text}\n{end}\n"
    if start not in page:
        return f"{page.rstrip()}\n\n{block}"
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}\n", lambda _: block, page, flags=re.DOTALL)


def section(study: Study, found: dict[str, Outcome], part: dict[str, Any], folder: Path) -> str:
    facts = part["provenance"][study.name]
    blocks = [f"## {study.title}", what_ran(study, facts)]
    if main := found.get(study.claims or ""):
        blocks += [
            claims_table(part["claims"], main), bar_figures(study, main, folder), worse(main), everything(main),
            run_curves(study, main, folder), *pictures_and_captions(study, main, folder),
        ]  # fmt: skip
    names = dict.fromkeys(name for arm in study.arms.values() for name in arm.tables)
    for number, name in enumerate(names, 1):
        blocks.append(arm_table(study, name, {key: one for key, one in found.items() if name in one.arm.tables}))
        blocks.append(arm_curves(study, number, [one for one in found.values() if name in one.arm.tables], folder))
    if not study.claims:  # else the whole run was shown above
        blocks[2:2] = [comparisons_table(study, part["comparisons"][study.name])]
        blocks += [folded(study, outcome, folder) for outcome in found.values() if outcome.arm.stages]
    judges = instruments(facts["instruments"]) if facts["instruments"] else ""
    return "\n\n".join(filter(None, [*blocks, judges, provenance(facts)]))


# ------------------------------------------------------------------------------------------------ numbers


def number(value: float, sign: str = "") -> str:
    digits = 1 if abs(value) >= 10 else 2 if round(abs(value), 3) >= 1 else 3
    return f"{value:{sign}.{digits}f}"


def span(one: dict[str, Any], sign: str = "") -> str:
    return f"{number(one['mean'], sign)} [{number(one['low'], sign)}, {number(one['high'], sign)}]"


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def what_ran(study: Study, facts: dict[str, Any]) -> str:
    seeds, machine, protocol = ", ".join(map(str, facts["seeds"])), facts["machine"], study.protocol
    return (
        f"`{facts['command']}`; seeds {seeds}; each evaluation has {protocol.samples} held-out pictures and "
        f"{protocol.drawings} drawings of held-out prompts; {facts['minutes']:.0f} minutes on {machine['cores']} cores."
    )


def claims_table(claims: list[dict[str, Any]], outcome: Outcome) -> str:
    rows = [
        [
            claim["title"], span(claim["before"]), span(claim["after"]), span(claim["gain"], "+"),
            ", ".join(number(value, "+") for value in claim["gain"]["of_seeds"]), claim["goal"],
            "yes" if claim["reached"] else "**no**", claim["paper"],
        ]
        for claim in claims
    ]  # fmt: skip
    heads = ["figure", "start", "end", "gain", "each seed", "goal", "reached", "the paper, on its own scale and data"]
    missed = [claim for claim in claims if not claim["reached"]]
    lines = [f"- `{claim['name']}`: {span(claim['gain'], '+')} (goal: {claim['goal']})" for claim in missed]
    verdict = f"**{len(claims) - len(missed)} of {len(claims)} goals are reached.**"
    verdict += "\n\n**Not reached:**\n\n" + "\n".join(lines) if missed else ""
    rewarded = f"The reward was {outcome.reward}; all else was not rewarded."
    return f"### Start and end\n\n{rewarded}\n\n{table(heads, rows)}\n\n{verdict}"


def comparisons_table(study: Study, compared: list[dict[str, Any]]) -> str:
    if not compared:
        return ""
    rows = [
        [
            one["title"], *named(study, one), span(one["before"]),
            span(one["after"]), span(one["gain"], "+"),
            ", ".join(number(value, "+") for value in one["gain"]["of_seeds"]), one["goal"],
            "yes" if one["reached"] else "**no**",
        ]
        for one in compared
    ]  # fmt: skip
    heads = ["figure", "first", "second", "of the first", "of the second", "difference", "each seed", "bar", "reached"]
    text = "Second less first, item by item. The bars were set before."
    reached = f"**{sum(one['reached'] for one in compared)} of {len(compared)} bars are reached.**"
    return f"### Comparisons\n\n{text}\n\n{table(heads, rows)}\n\n{reached}"


def named(study: Study, one: dict[str, Any]) -> tuple[str, str]:
    """What is compared: two arms, or two suites of one."""
    over, of = ("the start" if name == START else study.arms[name].title for name in (one["over"], one["of"]))
    return (f"{over}, {one['over_suite']}", of) if "over_suite" in one else (over, of)


def worse(outcome: Outcome) -> str:
    rows = figure_rows(worsened(outcome.figures))
    text = "Every figure whose interval lies on the wrong side of 0, whether or not it was a goal."
    return f"### What got worse\n\n{text}\n\n{figure_table(rows) if rows else 'Nothing.'}"


def everything(outcome: Outcome) -> str:
    rows = figure_rows(outcome.figures)
    text = "Statistics of pictures (`images/`) are distances from those of the originals."
    return f"<details><summary>All {len(rows)} figures</summary>\n\n{text}\n\n{figure_table(rows)}\n\n</details>"


def figure_table(rows: list[list[str]]) -> str:
    return table(["figure", "start", "end", "change"], rows)


def figure_rows(figures: dict[str, Figure]) -> list[list[str]]:
    return [[key, span(one.before), span(one.after), span(one.gain, "+")] for key, one in figures.items()]


def arm_table(study: Study, name: str, group: dict[str, Outcome]) -> str:
    columns = study.shown.columns
    keys = [key for key in columns if any(key in one.figures for one in group.values())]
    rows = [
        [one.arm.title, ", ".join(map(str, one.seeds)), f"{sum(one.forwards):,}"]
        + [f"{number(of.after['mean'])} ({span(of.gain, '+')})" if (of := one.figures.get(key)) else "" for key in keys]
        for one in group.values()
    ]
    missing = [arm.title for arm in study.arms.values() if name in arm.tables and arm.name not in group]
    note = f"\n\nNot run yet: {'; '.join(missing)}." if missing else ""
    text = "The value at the end and, in brackets, its gain over the start with its interval."
    heads = ["arm", "seeds", "decoder forwards", *(columns[key] for key in keys)]
    return f"### {name}\n\n{text}\n\n{table(heads, rows)}{note}"


def instruments(values: dict[str, Any]) -> str:
    """The judges' own accuracy."""
    floor = [[name.removeprefix("floor/"), span(one)] for name, one in values.items() if name.startswith("floor/")]
    rows = [[name, span(one)] for name, one in values.items() if not name.startswith("floor/")]
    main = [row for row in rows if row[0].endswith("overall") or "/" not in row[0]]
    text = (
        f"### The judges themselves\n\nHow often they are right where the truth is known.\n\n"
        f"{table(['judge', 'share right'], main)}\n\n"
        f"<details><summary>By fault and task</summary>\n\n{table(['judge', 'share right'], rows)}\n\n</details>"
    )
    begins = "Where the scale of each judge begins, the score of unrelated pictures:"
    return f"{text}\n\n{begins}\n\n{table(['judge', 'score'], floor)}" if floor else text


def provenance(facts: dict[str, Any]) -> str:
    git, machine = facts["git"] or {"revision": "unknown", "dirty": False}, facts["machine"]
    lines = [
        f"`{facts['command']}`; settings: `{facts['config']}`, and those of every job in `results.json`",
        f"git {git['revision']}{', with uncommitted changes' if git['dirty'] else ''}; {facts['written']}",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"{machine['cpu']}, {machine['cores']} cores; {machine['device']}; {machine['system']}",
        f"{facts['minutes']:.0f} minutes for {len(facts['minutes_of_jobs'])} jobs",
    ]
    return "### What was run\n\n" + "\n".join(f"- {line}" for line in lines)


# ------------------------------------------------------------------------------------------------ figures


def saved(folder: Path, name: str, svg: str, alt: str) -> str:
    (folder / name).write_text(svg, encoding="utf-8")
    return f"![{alt}]({folder.name}/{name})"


def bar_figures(study: Study, outcome: Outcome, folder: Path) -> str:
    links = []
    for name, shown in study.shown.bars.items():
        keys = [key for key in shown["figures"] if key in outcome.figures]
        found = [(key.split("/")[1].replace("_", " "), outcome.figures[key]) for key in keys]
        if not found:  # its suite was left out
            continue
        svg = bars([(label, one.before, one.after) for label, one in found], shown["title"])
        links.append(saved(folder, f"{study.name}-{name}.svg", svg, shown["title"]))
    return "\n\n".join(links)


def run_curves(study: Study, outcome: Outcome, folder: Path) -> str:
    """Reward, second opinion and caption length against optimiser steps, seed by seed."""
    last = [run_folder.read_rows(stage)[-1] for stage in outcome.stages[0]]
    edges = [float(sum(row["step"] for row in last[:count])) for count in range(len(last) + 1)]
    bands = [Band(a, b, stage.name) for a, b, stage in zip(edges, edges[1:], outcome.stages[0], strict=False)]
    measures = {
        "reward": f"Reward on held-out pictures: {outcome.reward}",
        "unrewarded": f"Not rewarded, on held-out pictures: {results.judge(last[-1], 'unrewarded')}",
        "caption_tokens": "Caption length in tokens, on held-out pictures",
    }
    links = []
    for measure, title in measures.items():
        tracks = [track(stages, measure, [row["step"] for row in last]) for stages in outcome.stages]
        links.append(saved(folder, f"{study.name}-{measure}.svg", curves({"": tracks}, bands, title), title))
    text = "Optimiser steps of the stages one after the other; seeds thin, their mean thick."
    return f"### Along the run\n\n{text}\n\n" + "\n\n".join(links)


def arm_curves(study: Study, number: int, group: list[Outcome], folder: Path) -> str:
    """The measure that no arm was rewarded for, the reward where all had the same, and caption length, against decoder
    forwards."""
    if not group:
        return ""
    judge = results.judge(run_folder.read_rows(group[0].stages[0][-1])[-1], "unrewarded")
    measures = {"unrewarded": f"{judge}, on held-out pictures", "caption_tokens": "Caption length in tokens"}
    if len({one.reward for one in group}) == 1:
        measures["reward"] = f"Reward on held-out pictures: {group[0].reward}"
    links = []
    for measure, what in measures.items():
        title = f"{what}, against decoder forwards"
        lines = {one.arm.title: [track(stages, measure, one.forwards) for stages in one.stages] for one in group}
        links.append(saved(folder, f"{study.name}-{number}-{measure}.svg", curves(lines, [], title), title))
    return "\n\n".join(links)


def folded(study: Study, outcome: Outcome, folder: Path) -> str:
    """Pictures and captions along the run of one arm among many."""
    blocks = pictures_and_captions(study, outcome, folder, f"{study.name}-{outcome.arm.name}")
    if not blocks:
        return ""
    body = "\n\n".join(block.replace("### ", "#### ", 1) for block in blocks)
    return f"<details><summary>Along the run: {outcome.arm.title}</summary>\n\n{body}\n\n</details>"


def pictures_and_captions(study: Study, outcome: Outcome, folder: Path, prefix: str = "") -> list[str]:
    """The same held-out pictures along the run of the first seed, and what their captions gained."""
    stages = [stage for stage in outcome.stages[0] if (stage / "gallery" / "captions.json").exists()]
    if not stages:
        return []
    columns, name = columns_along(stages), f"{prefix or study.name}-pictures.png"
    contact_sheet(columns).save(folder / name, optimize=True)
    keys = run_folder.read_rows(stages[0])[0]["keys"]
    marker = build(CaptionMarker, study.shown.captions) if study.shown.captions else CaptionMarker()
    data = yaml.safe_load((stages[0] / "config.yaml").read_text())["data"]
    blocks = [
        f"Picture {row + 1}\n\n{caption_table(columns[1:], row, marker, keys[row], data)}"
        for row in range(min(PICTURES, len(columns[0].pictures)))
    ]
    return [
        f"### The same pictures along the run\n\nSeed {outcome.seeds[0]}; each is drawn from its caption alone.\n\n"
        f"![the same held-out pictures along the run]({folder.name}/{name})",
        f"### The same captions along the run\n\nOf the first pictures above, wherever they change. {marker.legend}\n\n"
        + "\n\n".join(blocks),
    ]


def caption_table(columns: list[Column], row: int, marker: CaptionMarker, key: str, data: dict[str, Any]) -> str:
    """Captions of one picture; a caption that stays the same (only the encoder changes it) is not repeated."""
    before = [None, *(column.captions[row] for column in columns)]
    changes = [column for column, last in zip(columns, before, strict=False) if column.captions[row] != last]
    lines = marker.mark([column.captions[row] for column in changes], key, data)
    return table(["from", "caption"], [[column.title, line] for column, line in zip(changes, lines, strict=True)])
