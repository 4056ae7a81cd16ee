"""`uae caption`: pictures -> a JSONL of captions, by a run, by the shipped weights, or by a model of the hub."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from uae_lightning.commands.pictures import DEFAULT_CONFIG
from uae_lightning.files import check_writable
from uae_lightning.ranges import Count, NonNegative, Seed
from uae_lightning.usage import Parser

DESCRIPTION = """\
Captions pictures, or all pictures in folders, and writes a line {"image": ..., "caption": ...} for each as it comes.

    uae caption photos --weights runs/demo                                  with what a run has trained
    uae caption a.png b.png --config conf/scenes/encoder_rl.yaml --to -     with the weights the YAML names; to a pipe
    uae caption photos --model Qwen/Qwen2.5-VL-3B-Instruct --to photos.jsonl --prompt "What is in this picture?"

Stopped or killed, the same command goes on with the pictures that have no caption yet. `uae fit` trains on the file:
--data.init_args.path captions.jsonl. Long captions for a training set, filtered and in shards: `uae caption-data`.
"""
PROMPT = "Describe this picture."
LONGEST = 256  # tokens of --model's captions


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.prepare.caption_lines import CaptionLines, find_pictures

    pictures = find_pictures(options.pictures)
    by, write = captioner(options) if options.model else writer(options)
    if options.overwrite and options.to is not None:
        options.to.unlink(missing_ok=True)
    lines = CaptionLines(pictures, options.to, by, options.batch_size)
    count = lines.run(write)
    if options.to is not None:
        print(f"{count} of {len(pictures)} pictures have a caption: {options.to}")
    lines.check()


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="uae caption", description=DESCRIPTION)
    add = parser.add_argument
    add("pictures", type=Path, nargs="+", metavar="PICTURE", help="or a folder, searched below too")
    add("--to", type=Path, default=Path("captions.jsonl"), metavar="FILE", help="- for a pipe; default: %(default)s")
    add("--config", type=Path, metavar="YAML", help="of a stage; default: the last stage of --weights")
    add("--weights", type=Path, metavar="FOLDER", help="of a run, or of a stage")
    add("--model", metavar="MODEL", help="in their place: hub id or folder of an image-text-to-text model")
    add("--prompt", default=PROMPT, metavar="TEXT", help="what --model is asked; default: %(default)r")
    add("--batch-size", type=Count, default=8, metavar="N", help="pictures at a time; default: %(default)s")
    add("--temperature", type=NonNegative, default=0.0, metavar="T", help="0 is greedy; default: %(default)s")
    add("--max-new-tokens", type=Count, metavar="N", help=f"of a caption; default: the YAML's, of --model {LONGEST}")
    add("--seed", type=Seed, default=0, metavar="N", help="of sampled captions; default: %(default)s")
    add("--overwrite", action="store_true", help="start the file again")
    options = parser.parse(args)
    if options.model and (options.weights or options.config):
        parser.error("--model captions in place of a run: leave --weights and --config out, or --model")
    if not (options.model or options.weights or options.config):
        if not DEFAULT_CONFIG.is_file():
            parser.error("name a run's folder with --weights, a stage's YAML with --config, or a model with --model")
        options.config = DEFAULT_CONFIG
    options.to = None if str(options.to) == "-" else options.to
    if options.to is not None:
        check_writable(options.to, "--to")
    return options


def writer(options: argparse.Namespace):
    """(who captions and how, pictures -> captions) of an auto-encoder of ours."""
    import torch

    from uae_lightning.data.images import as_tensor
    from uae_lightning.run.loading import load_writer

    given = {"captioning.temperature": options.temperature, "captioning.max_new_tokens": options.max_new_tokens}
    model = load_writer(options.config, options.weights, {k: v for k, v in given.items() if v is not None})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.encoder.to(device)

    @torch.no_grad()
    def write(images, number: int) -> list[str]:
        pixels = torch.stack([as_tensor(image, model.image_size) for image in images]).to(device)
        return model.write(pixels, 1, options.seed + number).texts

    settings = model.encoder.fingerprint() | vars(model.captioning) | {"seed": options.seed}
    return named(options.weights or options.config, settings), write


def captioner(options: argparse.Namespace):
    """The same of a model of transformers."""
    from uae_lightning.prepare.caption_lines import written_by
    from uae_lightning.prepare.captioner import Captioner

    length = options.max_new_tokens or LONGEST
    model = Captioner(options.model, options.prompt, length, options.temperature)
    settings = {name: getattr(options, name) for name in ("prompt", "temperature", "seed")} | {"tokens": length}
    return named(options.model, settings), written_by(model, options.seed)


def named(who: str | Path, settings: dict) -> str:
    """With eight letters of a digest that other weights or settings do not share."""
    return f"{who} {hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"
