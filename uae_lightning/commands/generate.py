"""`uae generate`: pictures from texts, through the encoder's states, the projector and the decoder."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.commands.pictures import cost, gains, given, load_chosen, load_refinement, open_picture, save_picture
from uae_lightning.terminal.progress import watched
from uae_lightning.usage import Parser, UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.refinement import Refined, Refinement

DESCRIPTION = """\
Draws a picture from each text, as the decoder learned to draw from captions.

    uae generate "a large red ball in the center" --weights runs/demo     with what a run has trained
    uae generate "a ball" "two stars" --weights runs/demo --seed 3        several, side by side
    uae generate --prompts prompts.txt --config conf/scenes/decoder_rl.yaml
    uae generate "a ball" --weights runs/rewriting --rewrite              the encoder writes a complete caption first
    uae generate "a ball" --weights runs/wide --size 768x512              another shape than the decoder's square
    uae generate "a ball" --weights runs/bridge --reference picture.png   beside the text, what a picture shows
    uae generate "a ball" --weights runs/demo --candidates 4 --verifier conf/scenes/verifier.yaml

Texts are drawn one at a time and from the same noise: a picture depends on its text, the seed and the weights, and not
on what is drawn beside it. `uae export` writes a folder that draws the same picture without this package.
"""


def main(args: list[str]) -> None:
    options = parse(args)
    picture = open_picture(options.reference) if options.reference else None  # before the models are loaded
    refinement = load_refinement(options, originals=False)
    model = load_chosen(options)
    if options.size is not None:
        check_size(model, *options.size)
    reference = None if picture is None else reference_of(model, picture)
    texts = rewritten(model, options.texts, options.seed) if options.rewrite else options.texts
    if refinement is None:
        drawn = [draw(model, text, options.seed, reference, options.size) for text in shown(texts)]
    else:
        pairs = shown(list(zip(texts, options.texts, strict=True)))
        found = [refined(model, refinement, text, prompt, options.seed) for text, prompt in pairs]
        drawn = [best.pictures[0] for best, _ in found]
        verifier = type(refinement.verifier).__name__
        print(gains([first for _, first in found], [best.scores for best, _ in found], verifier))
    save_picture(side_by_side(drawn), options.output)
    if count := model.encoder.control_texts:
        print(f"{count} of the texts hold control tokens of the encoder, which were read as text")
    print(cost(model, refinement))
    print(f"{len(options.texts)} picture{'s' * (len(options.texts) > 1)}: {options.output}")


def parse(args: list[str]):
    parser = Parser(prog="uae generate", description=DESCRIPTION)
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="more texts, one a line")
    parser.add_argument("--output", type=Path, default=Path("generated.png"), help="default: %(default)s")
    parser.add_argument(
        "--rewrite", action="store_true",
        help="draw the complete caption that the encoder makes of each text (stages.rewrite_sft teaches it)",
    )  # fmt: skip
    parser.add_argument(
        "--reference", type=Path, metavar="PICTURE",
        help="its visual features are drawn from beside the text: by a decoder that learnt to look at them, as "
        "conf/scenes/bridge_pretrain.yaml trains it",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=width_and_height, metavar="WIDTHxHEIGHT",
        help="in pixels, such as 768x512, of a decoder that has learnt other shapes than its square (data.buckets)",
    )  # fmt: skip
    options = given(parser, args)
    options.texts = [*options.texts, *(read_lines(options.prompts) if options.prompts else [])]
    if not options.texts:
        parser.error('say what to draw: a text in quotes, such as "a red ball", or a file of them with --prompts')
    if options.reference is not None and options.verifier is not None:
        parser.error("--reference draws a text once: leave --verifier, --candidates and --rounds out")
    if options.size is not None and options.verifier is not None:
        parser.error("--verifier judges pictures of the decoder's own size: leave --size out")
    return options


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty."""
    if not path.is_file():
        raise UsageError(f"--prompts {path} does not exist: name a text file with one prompt a line")
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts {path} is not UTF-8 text: {error}") from error


def draw(
    model: AutoEncoder,
    prompt: str,
    seed: int,
    reference: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The picture [3, H, W] in [0, 1] of one text."""
    return model.generate([prompt], seed, reference, size)[0]


def width_and_height(text: str) -> tuple[int, int]:
    """768x512 -> (768, 512)."""
    if not re.fullmatch("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", text):
        raise ArgumentTypeError(f"{text!r} is no size, such as 768x512")
    width, height = map(int, text.split("x"))
    return width, height


def check_size(model: AutoEncoder, width: int, height: int) -> None:
    """Raises UsageError where the decoder cannot draw it."""
    try:
        model.decoder.check_size(width, height)
    except ValueError as error:
        raise UsageError(f"--size: {error}") from error


def reference_of(model: AutoEncoder, picture: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1] at the decoder's size; a UsageError where the decoder does not look at it."""
    from uae_lightning.data.images import as_tensor

    reference = as_tensor(picture, model.image_size)[None].to(model.device)
    try:
        model.visual_features(reference)
    except ValueError as error:
        raise UsageError(f"--reference: {error}") from error
    return reference


def rewritten(model: AutoEncoder, prompts: list[str], seed: int) -> list[str]:
    """What is drawn in the place of each text; it is printed. Texts are rewritten one at a time, too."""
    texts = [model.rewrite([prompt], 1, seed).texts[0] for prompt in prompts]
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"{prompt} -> {text}")
    return texts


def refined(model: AutoEncoder, refinement: Refinement, text: str, prompt: str, seed: int) -> tuple[Refined, Tensor]:
    """The best drawing of a text, as the verifier judges it by the prompt, and the score [1] of the first one."""
    from uae_lightning.refinement import noises

    return refinement.draw(model, [text], noises(model, 1, seed), prompts=[prompt])


def shown(items: list) -> Iterable:
    """With a progress bar where there are several."""
    return watched(items, len(items), "picture") if len(items) > 1 else items


def side_by_side(pictures: list[Tensor]) -> Image.Image:
    """[3, H, W] each -> one row of them."""
    import torch

    from uae_lightning.data.images import as_picture

    return as_picture(torch.cat(pictures, 2))
