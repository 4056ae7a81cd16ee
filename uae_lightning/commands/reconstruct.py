"""`uae reconstruct`: pictures of one's own through the round trip, picture -> caption -> picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from uae_lightning.commands.pictures import cost, gains, given, load_chosen, load_refinement, open_picture, save_picture
from uae_lightning.data.images import as_picture, as_tensor
from uae_lightning.usage import Parser

if TYPE_CHECKING:
    from uae_lightning.refinement import Refinement

DESCRIPTION = """\
Captions each picture, draws it again from the caption alone, and writes both side by side.

    uae reconstruct scene.png                                     with the shipped weights, untrained by any stage
    uae reconstruct scene.png --weights runs/demo                 with what a run has trained
    uae reconstruct cat.png --config conf/scenes/encoder_rl.yaml  with the weights the YAML names
    uae reconstruct cat.png --candidates 4 --verifier conf/scenes/unified_score.yaml   of four drawings the closest
"""


def main(args: list[str]) -> None:
    options = parse(args)
    pictures = [open_picture(path) for path in options.images]  # before the models are loaded
    refinement = load_refinement(options, originals=True)
    model = load_chosen(options)
    originals, captions, reconstructions = round_trip(model, pictures, options.seed, refinement)
    for path, caption in zip(options.images, captions, strict=True):
        print(f"{path}: {caption}")
    save_picture(side_by_side(originals, reconstructions), options.output)
    print(cost(model, refinement))
    print(f"original | reconstruction: {options.output}")


def parse(args: list[str]):
    parser = Parser(prog="uae reconstruct", description=DESCRIPTION)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--output", type=Path, default=Path("reconstruction.png"), help="default: %(default)s")
    return given(parser, args)


def round_trip(model, pictures: list[Image.Image], seed: int, refinement: Refinement | None = None):
    """(originals [B, 3, H, W], captions, reconstructions [B, 3, H, W]) at the decoder's picture size."""
    import torch

    from uae_lightning.refinement import noises

    originals = torch.stack([as_tensor(picture, model.image_size) for picture in pictures]).to(model.device)
    if refinement is None:
        captions, reconstructions = model.reconstruct(originals, seed)
        return originals, captions.texts, reconstructions
    texts = model.write(originals, 1, seed).texts
    best, first = refinement.draw(model, texts, noises(model, len(texts), seed), originals)
    print(gains([first], [best.scores], type(refinement.verifier).__name__))
    return originals, texts, best.pictures


def side_by_side(originals, reconstructions) -> Image.Image:
    """One row per picture: original, reconstruction."""
    import torch

    rows = torch.cat([originals, reconstructions], 3)  # [B, 3, H, 2W]
    return as_picture(torch.cat(list(rows), 1))
