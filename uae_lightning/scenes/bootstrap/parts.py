"""One part of the bootstrap, and its figures in card.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from uae_lightning.files import write_json
from uae_lightning.scenes.bootstrap.captioner import train_captioner, train_text
from uae_lightning.scenes.bootstrap.clip import train_clip
from uae_lightning.scenes.bootstrap.decoder import train_decoder
from uae_lightning.scenes.bootstrap.detector import train_detector


def run_part(part: str, work: Path, output: Path, *, scale: float = 1.0, threads: int | None = None) -> None:
    """Train one part, or go on with it, and note its figures in `output/card.json`."""
    if threads:
        torch.set_num_threads(threads)
    steps = lambda count: max(1, round(count * scale))  # noqa: E731
    print(f"bootstrap: {part}", flush=True)
    if part == "detector":
        figures = train_detector(output / "detector", work=work / "detector", steps=steps(2000))
    elif part == "verifier":
        folder = output / "verifier"
        figures = train_detector(folder, work=work / "verifier", steps=steps(1500), seed=1, width=16)
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
        figures = train_decoder(output, work / "decoder", encoder=work / "text_encoder", steps=steps(4000))
    output.mkdir(parents=True, exist_ok=True)
    card = output / "card.json"
    known = json.loads(card.read_text()) if card.exists() else {}
    write_json(card, known | {part: figures})
