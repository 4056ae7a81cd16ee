"""Rate against fidelity, from what `uae study --config conf/relatives_two.yaml` evaluated: a table, and a drawing.

    python -m benchmarks.rate_plot --study runs/relatives_two --output docs/results/rate-fidelity.svg

Bits for a picture along the bottom, as an adaptive coder needs them (`evaluation.rate`); the unified score upwards.
Means over seeds; the intervals are those over pictures of the first seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from uae_lightning.report.charts import Line, line_chart

FIGURES = {
    "bits, raw": ("rate", "raw"),
    "bits, coded": ("rate", "coded"),
    "unified score": ("unified_bench", "overall"),
    "reward": ("scene", "reward"),
    "facts": ("scene", "facts"),
    "R@1 of 192, scenes_clip": ("retrieval", "scenes_clip"),
}
COLORS = {"codes": "#2563a8", "captions": "#b4531f"}
STYLE = """
svg { font-family: "Source Sans 3", "Segoe UI", system-ui, sans-serif; background: #fff; }
.grid { stroke: #e3e0d8; } .axis { stroke: #b9b4a8; } .tick { font-size: 11.5px; fill: #5f6770; }
.end { text-anchor: end; } .middle { text-anchor: middle; } .label { font-size: 13px; fill: #22262b; }
"""


def read(study: Path) -> dict[str, list[dict]]:
    """Arm -> the figures of each of its seeds."""
    found: dict[str, list[dict]] = {}
    for file in sorted(study.glob("seed-*/*/evaluation.json")):
        found.setdefault(file.parent.name, []).append(json.loads(file.read_text())["figures"])
    return {arm: seeds for arm, seeds in found.items() if all("rate" in figures for figures in seeds)}


def mean(seeds: list[dict], suite: str, name: str) -> float:
    return sum(figures[suite][name]["mean"] for figures in seeds) / len(seeds)


def table(arms: dict[str, list[dict]]) -> str:
    lines = ["| arm | seeds | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for arm, seeds in arms.items():
        cells = [f"{mean(seeds, *of):.1f}" if of[0] == "rate" else f"{mean(seeds, *of):.3f}" for of in FIGURES.values()]
        lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawing(arms: dict[str, list[dict]]) -> str:
    """Codes by rising rate, captions before and after RL."""
    lines = []
    for kind, color in COLORS.items():
        points = [
            (
                mean(seeds, *FIGURES["bits, coded"]),
                mean(seeds, *FIGURES["unified score"]),
                seeds[0]["unified_bench"]["overall"],
            )
            for arm, seeds in arms.items()
            if arm.startswith(kind)
        ]
        points.sort(key=lambda point: point[0])
        low, high = ([one[side] for _, _, one in points] for side in ("low", "high"))
        lines.append(Line([x for x, *_ in points], [y for _, y, _ in points], low, high, color, dots=True))
    chart = line_chart(lines, width=900, height=330, label="Unified score against bits for a picture")
    keys = "".join(
        f'<text x="{70 + 110 * place}" y="18" class="label" fill="{color}" font-weight="600">{kind}</text>'
        for place, (kind, color) in enumerate(COLORS.items())
    )
    axes = '<text x="888" y="18" class="label end">unified score, by bits for a picture (adaptive coder)</text>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="330"'
    return chart.replace("<svg", head, 1).replace(
        ">", f'><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{keys}{axes}', 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/relatives_two"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/rate-fidelity.svg"))
    options = parser.parse_args()
    arms = read(options.study)
    print(table(arms))
    options.output.write_text(drawing(arms))


if __name__ == "__main__":
    main()
