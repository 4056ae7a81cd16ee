"""Trains the embedded default's backbones from scratch, resumable at any moment: `uae bootstrap`.

detector     judge of reports              reads pictures
text         encoder, first phase          reads and writes captions, sees nothing
encoder      vision and captioning phase   captions pictures, tersely and with omissions
decoder      web-like captions -> pictures on the states of the text phase, so it may run beside `encoder`
clip         judge of reports              pictures beside captions; tried on what the decoder's codec leaves
"""

from __future__ import annotations

import json
from pathlib import Path

from uae_lightning.files import check_writable, naming, write_json
from uae_lightning.ranges import Count, Positive
from uae_lightning.usage import Parser

PARTS = ("detector", "text", "encoder", "decoder", "clip")
SHIPPED = Path(__file__).parents[1] / "weights"


def main(args: list[str]) -> None:
    """The command `uae bootstrap`."""
    parser = Parser(prog="uae bootstrap", description=__doc__)
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
    for part in PARTS if options.only is None else (options.only,):
        with naming(options.work / part):
            run_part(part, options.work, options.output, scale=options.scale, threads=options.threads)


def places(work: Path | None, output: Path | None, scale: float) -> tuple[Path, Path]:
    """Where checkpoints and weights go: a trial has folders of its own, else it would replace what is shipped, and the
    real training would go on from its checkpoints."""
    if scale == 1:
        return work or Path("bootstrap/scenes"), output or SHIPPED
    work = work or Path(f"bootstrap/scenes-{scale:g}")
    return work, output or work / "weights"


def run_part(part: str, work: Path, output: Path, *, scale: float = 1.0, threads: int | None = None) -> None:
    """Train one part, or go on with it, and note its figures in `output/card.json`."""
    import torch

    from uae_lightning.scenes.bootstrap.captioner import train_captioner, train_text
    from uae_lightning.scenes.bootstrap.clip import train_clip
    from uae_lightning.scenes.bootstrap.decoder import train_decoder
    from uae_lightning.scenes.bootstrap.detector import train_detector

    if threads:
        torch.set_num_threads(threads)
    steps = lambda count: max(1, round(count * scale))  # noqa: E731
    print(f"bootstrap: {part}", flush=True)
    if part == "detector":
        figures = train_detector(output / "detector", work=work / "detector", steps=steps(2000))
    elif part == "clip":
        figures = train_clip(output / "clip", work / "clip", steps=steps(900))
    elif part == "text":
        figures = train_text(work / "text_encoder", work, steps=steps(1200))
    elif part == "encoder":
        figures = train_captioner(
            output / "encoder",
            work,
            work / "text_encoder",
            vision_steps=steps(600),
            steps=steps(2000),
            habit_steps=steps(400),
        )
    else:
        figures = train_decoder(output, work / "decoder", encoder=work / "text_encoder", steps=steps(16_000))
    output.mkdir(parents=True, exist_ok=True)
    card = output / "card.json"
    known = json.loads(card.read_text()) if card.exists() else {}
    write_json(card, known | {part: figures})
