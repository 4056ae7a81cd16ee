"""What a reward takes off for one fault of a drawing, in full and faint: print it before any reinforcement learning.

A part at half strength is half missing; one that should not be there at half strength is half added. A reward that
takes off more for half an added part than for half a missing one teaches a decoder that smears to leave things out:
it went up by .04 that way while GenEval fell by .06 (ours, docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from uae_lightning.evaluation.unified_bench import scores
from uae_lightning.interfaces import Reward
from uae_lightning.terminal.progress import Progress

STRENGTHS = (1.0, 0.5)
MISSING, ADDED = "missing", "added"  # beginnings of the names of faults that are weighed against each other
Faulty = dict[str, Tensor]  # name of a fault -> pictures with it
Costs = dict[str, dict[float, list[float]]]  # name of a fault -> strength -> what each picture loses


def fault_costs(judge: Reward, cases: Iterable[tuple[Tensor, Faulty]]) -> Costs:
    """Score of true pictures less that of pictures with a single fault, which stands in them with this strength.

    Args:
        cases: true pictures [N, 3, H, W] in [0, 1], and the same with each fault; the same faults in every batch.
    """
    costs: Costs = {}
    with Progress(None, "picture", "fault-costs") as bar:
        for true, faulty in cases:
            drawn = {(kind, s): true.lerp(images, s) for kind, images in faulty.items() for s in STRENGTHS}
            candidates = torch.stack([true, *drawn.values()], 1).flatten(0, 1)
            found = scores(judge, true.repeat_interleave(1 + len(drawn), 0), candidates).view(len(true), -1)
            for (kind, strength), lost in zip(drawn, (found[:, :1] - found[:, 1:]).T.tolist(), strict=True):
                costs.setdefault(kind, {s: [] for s in STRENGTHS})[strength] += lost
            bar.update(len(true))
    return costs


def evenness(costs: Costs) -> dict[float, float]:
    """Strength -> what a missing part costs, in units of an added one: 1 is even-handed."""
    added = [kind for kind in costs if kind.startswith(ADDED)]
    mean = lambda kinds, s: np.mean([np.mean(costs[kind][s]) for kind in kinds])  # noqa: E731
    return {s: float(mean([MISSING], s) / mean(added, s)) for s in STRENGTHS}


def costs_markdown(costs: Costs) -> str:
    """A row for each fault, a column for each strength."""
    head = ["one fault", *(f"at strength {s:g}" for s in STRENGTHS)]
    rows = [[kind, *(f"{np.mean(of_kind[s]):.4f}" for s in STRENGTHS)] for kind, of_kind in costs.items()]
    rows.append([f"{MISSING} : {ADDED}", *(f"{ratio:.2f}" for ratio in evenness(costs).values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"
