"""What `benchmarks.decoder_objectives` has found: gains and their intervals, the table, the rule for the default."""

from __future__ import annotations

from dataclasses import dataclass

from uae_lightning.evaluation.intervals import Interval, grouped_interval
from uae_lightning.evaluation.statistics import Items

BASELINE, REFERENCE = "cps", "published"
NEEDED_SEEDS = 3  # for a new default


@dataclass(frozen=True)
class Row:
    """One validation."""

    seconds: float  # of training before it
    step: int
    reward: list[float]  # a value per held-out picture


@dataclass(frozen=True)
class Training:
    arm: str
    seed: int
    settings: dict  # what it depends on; another training of that name with other settings is not this one
    rows: list[Row]
    geneval: list[Items]  # before and after: task -> 1 where the picture fulfils the prompt, else 0
    own_sampler: list[list[float]]  # before and after: reward per picture under the arm's sampler; [] if all share it


Found = dict[str, list[Training]]  # arm -> a training per seed


# -------------------------------------------------------------------------------------------------- gains and changes


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def less(values: list[float], others: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def gains(trainings: list[Training]) -> list[list[float]]:
    """[seeds][pictures]: reward at the end less reward at the start."""
    return [less(training.rows[-1].reward, training.rows[0].reward) for training in trainings]


def paired(trainings: list[Training], others: list[Training]) -> list[tuple[Training, Training]]:
    """Those of the seeds that both have."""
    by_seed = {other.seed: other for other in others}
    return [(training, by_seed[training.seed]) for training in trainings if training.seed in by_seed]


def compared(trainings: list[Training], others: list[Training]) -> Interval | None:
    """Difference of the gains over the seeds that both have, picture by picture; None where they share none."""
    if not (pairs := paired(trainings, others)):
        return None
    own, theirs = (gains(list(side)) for side in zip(*pairs, strict=True))
    return grouped_interval([[less(a, b) for a, b in zip(own, theirs, strict=True)]])


def geneval_change(trainings: list[Training]) -> Interval:
    """Of the plain mean of GenEval's tasks, prompt by prompt."""
    tasks = trainings[0].geneval[0]
    return grouped_interval([
        [less(after[task], before[task]) for before, after in (training.geneval for training in trainings)]
        for task in tasks
    ])  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- rule


def winner(found: Found) -> str:
    """The default by the rule of `benchmarks.decoder_objectives`."""
    better = [name for name, trainings in found.items() if name not in (BASELINE, REFERENCE) and wins(trainings, found)]
    return max(better, key=lambda name: mean([mean(gain) for gain in gains(found[name])]), default=BASELINE)


def wins(trainings: list[Training], found: Found) -> bool:
    against = compared(trainings, found.get(BASELINE, []))
    if against is None or against["seeds"] < NEEDED_SEEDS:
        return False
    return against["low"] > 0 and geneval_change(trainings)["high"] >= 0


# ----------------------------------------------------------------------------------------------------------- results


def table(found: Found) -> str:
    """Per arm: cost of a step, mean gains on the way, the last one with its interval, difference to `BASELINE`, and
    what became of GenEval's tasks."""
    head = ["arm", "steps", "s/step", "gain on the way", "gain at the end", "of each seed", f"less that of {BASELINE}"]
    lines = [[*head, "GenEval"], *(line(name, found) for name in found)]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
    )


def line(name: str, found: Found) -> list[str]:
    trainings = found[name]
    steps = mean([training.rows[-1].step for training in trainings])
    cost = mean([training.rows[-1].seconds / training.rows[-1].step for training in trainings])
    curve = [
        mean([mean(training.rows[point].reward) - mean(training.rows[0].reward) for training in trainings])
        for point in range(1, len(trainings[0].rows))
    ]
    seeds = " ".join(f"{mean(gain):+.4f}" for gain in gains(trainings))
    against = None if name == BASELINE else compared(trainings, found.get(BASELINE, []))
    return [
        name, f"{steps:.0f}", f"{cost:.1f}", " ".join(f"{gain:+.4f}" for gain in curve),
        bracketed(grouped_interval([gains(trainings)])), seeds, bracketed(against) if against else "",
        bracketed(geneval_change(trainings), 3),
    ]  # fmt: skip


def bracketed(interval: Interval, digits: int = 4) -> str:
    value, low, high = (f"{interval[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{value} [{low}, {high}]"


def conclusions(found: Found) -> list[str]:
    """Lines below the table: the default by the rule, and our structure against the published one."""
    seeds = len(found.get(BASELINE, []))
    by_rule = winner(found) if seeds >= NEEDED_SEEDS else f"nothing yet, it needs {NEEDED_SEEDS} seeds of {BASELINE}"
    return [f"default by the rule: {by_rule}", *against_published(found)]


def against_published(found: Found) -> list[str]:
    pairs = paired(found.get(BASELINE, []), found.get(REFERENCE, []))
    if not pairs:
        return []
    ours, theirs = ([*side] for side in zip(*pairs, strict=True))
    own_sampler = grouped_interval([[less(after, before) for before, after in (t.own_sampler for t in theirs)]])
    before, after = (mean([mean(t.own_sampler[moment]) for t in theirs]) for moment in (0, 1))
    return [
        f"{after_seconds(BASELINE, ours)}; {after_seconds(REFERENCE, theirs)}, difference "
        f"{bracketed(compared(ours, theirs))}, seeds: {len(pairs)}",
        f"{REFERENCE} under its own sampler: {before:.4f} -> {after:.4f}, change {bracketed(own_sampler)}",
    ]


def after_seconds(name: str, trainings: list[Training]) -> str:
    seconds = mean([training.rows[-1].seconds for training in trainings])
    return f"{name} after {seconds:.0f} s: {mean([mean(gain) for gain in gains(trainings)]):+.4f}"


def chart(found: Found) -> str:
    """SVG of held-out reward against busy seconds: seeds thin, their mean thick."""
    from uae_lightning.study.figures import curves

    tracks = {
        name: [([row.seconds for row in t.rows], [mean(row.reward) for row in t.rows]) for t in trainings]
        for name, trainings in found.items()
    }
    return curves(tracks, (), "Held-out reward against busy seconds of training")
