"""Trains the embedded default's backbones from scratch, resumable at any moment: `uae bootstrap`.

detector     judge of reports              reads pictures
text         encoder, first phase          reads and writes captions, sees nothing
encoder      vision and captioning phase   captions pictures, tersely and with omissions
decoder      short captions -> pictures    on the states of the text phase, so it may run beside `encoder`
clip         judge of reports              pictures beside captions; tried on what the decoder's codec leaves
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from uae_lightning.memory import keep_freed_memory

PARTS = ("detector", "text", "encoder", "decoder", "clip")
SHIPPED = Path(__file__).parents[1] / "weights" / "scenes"


def main(args: list[str] | None = None) -> None:
    """The command `uae bootstrap`."""
    parser = argparse.ArgumentParser(
        "uae bootstrap", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="train this part alone (its predecessors must be finished)")
    parser.add_argument("--work", type=Path, default=Path("bootstrap/scenes"), help="checkpoints; continued if present")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="finished weights (default: inside the package)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the steps of every part; 0.01 to try it out"
    )
    options = parser.parse_args(args)
    keep_freed_memory()
    for part in PARTS if options.only is None else (options.only,):
        run_part(part, options.work, options.output, scale=options.scale, threads=options.threads)


def run_part(part: str, work: Path, output: Path, *, scale: float = 1.0, threads: int | None = None) -> None:
    """Train one part, or go on with it, and note its figures in `output/card.json`."""
    import torch

    from uae_lightning.bootstrap.captioner import train_captioner, train_text
    from uae_lightning.bootstrap.clip import train_clip
    from uae_lightning.bootstrap.decoder import train_decoder
    from uae_lightning.bootstrap.detector import train_detector

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
    card.write_text(json.dumps(known | {part: figures}, indent=1))
