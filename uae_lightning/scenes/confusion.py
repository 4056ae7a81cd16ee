"""What the scene detector mistakes for what: rows are the truth, columns its answer."""

from __future__ import annotations

import torch
from torch import Tensor

from uae_lightning.scenes.detector import NAMES


def confusion(read: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Counts [K, K + 1] of each kind of fact; the last column counts objects that were not seen at all.

    Args:
        read: what `SceneDetector.read` answers.
        targets: what `scene_targets` wants; class, colour and size are compared at occupied cells.
    """
    tables = {}
    for kind, names in NAMES.items():
        answer, truth = read[kind], targets[kind]
        if truth.ndim == 2:
            answer = answer.where(read["presence"], len(names))[targets["presence"]]
            truth = truth[targets["presence"]]
        pairs = truth * (len(names) + 1) + answer
        tables[kind] = torch.bincount(pairs, minlength=len(names) * (len(names) + 1)).view(len(names), -1)
    return tables


def confusion_markdown(tables: dict[str, Tensor]) -> str:
    """One table per kind; zeros are left blank, so that mistakes stand out."""
    blocks = []
    for kind, table in tables.items():
        heads = [*NAMES[kind], "unseen"]
        lines = [f"| {kind} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for name, row in zip(NAMES[kind], table.tolist(), strict=True):
            lines.append(f"| {name} | {' | '.join(str(count or '') for count in row)} |")
        right = table.diagonal().sum() / table.sum()
        blocks.append(f"**{kind}**: {right:.1%} of {int(table.sum())} right\n\n" + "\n".join(lines))
    return "\n\n".join(blocks) + "\n"
