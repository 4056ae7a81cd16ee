"""The command `uae bootstrap`."""

from __future__ import annotations

from pathlib import Path

from uae_lightning.files import check_writable, naming
from uae_lightning.ranges import Count, Positive
from uae_lightning.run.memory import freed_memory_kept
from uae_lightning.scenes import bootstrap
from uae_lightning.scenes.bootstrap import PARTS, SHIPPED
from uae_lightning.usage import Parser


def main(args: list[str]) -> None:
    parser = Parser(prog="uae bootstrap", description=bootstrap.__doc__)
    parser.add_argument("--only", choices=PARTS, help="train this part alone (its predecessors must be finished)")
    parser.add_argument("--work", type=Path, help="checkpoints; continued if present (default: bootstrap/scenes)")
    parser.add_argument(
        "--output", type=Path, help="finished weights (default: inside the package; with --scale, in --work)"
    )
    parser.add_argument("--threads", type=Count, default=None, help="CPU threads (default: all)")
    parser.add_argument(
        "--scale", type=Positive, default=1.0, help="multiplies the steps of every part; 0.01 to try it out"
    )
    options = parser.parse(args)
    options.work, options.output = places(options.work, options.output, options.scale)
    check_writable(options.work / "state.pt", "--work")
    check_writable(options.output / "card.json", "--output")
    from uae_lightning.scenes.bootstrap.parts import run_part

    for part in PARTS if options.only is None else (options.only,):
        with naming(options.work / part), freed_memory_kept():
            run_part(part, options.work, options.output, scale=options.scale, threads=options.threads)


def places(work: Path | None, output: Path | None, scale: float) -> tuple[Path, Path]:
    """Where checkpoints and weights go: a trial has folders of its own, else it would replace what is shipped, and the
    real training would go on from its checkpoints."""
    if scale == 1:
        return work or Path("bootstrap/scenes"), output or SHIPPED
    work = work or Path(f"bootstrap/scenes-{scale:g}")
    return work, output or work / "weights"
