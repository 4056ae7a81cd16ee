"""`uae reconstruct`: pictures of one's own through the round trip, picture -> caption -> picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from uae_lightning import run_folder
from uae_lightning.usage import Parser, UsageError

DESCRIPTION = """\
Captions each picture, draws it again from the caption alone, and writes both side by side.

    uae reconstruct scene.png                                     with the shipped weights, untrained by any stage
    uae reconstruct scene.png --weights runs/demo                 with what a run has trained
    uae reconstruct cat.png --config conf/scenes/encoder_rl.yaml  with the weights the YAML names
"""
DEFAULT_CONFIG = Path("conf/scenes/decoder_rl.yaml")


def main(args: list[str]) -> None:
    options = parse(args)
    pictures = [read_picture(path) for path in options.images]  # before the models are loaded
    stage = load_stage(options)
    originals, captions, reconstructions = round_trip(stage, pictures, options.seed)
    for path, caption in zip(options.images, captions, strict=True):
        print(f"{path}: {caption}")
    side_by_side(originals, reconstructions).save(options.output)
    print(f"original | reconstruction: {options.output}")


def parse(args: list[str]):
    parser = Parser(prog="uae reconstruct", description=DESCRIPTION)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--config", type=Path, metavar="YAML", help="of a stage; default: the last stage of --weights")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="of a run: the latest weights of each part")
    parser.add_argument("--output", type=Path, default=Path("reconstruction.png"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="of the sampler; default: the YAML's")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance, 1 is none; default: the YAML's")
    parser.add_argument("--seed", type=int, default=0, help="of the noise to start from; default: %(default)s")
    options = parser.parse(args)
    if options.config is None and options.weights is None:
        if not DEFAULT_CONFIG.is_file():
            parser.error("name a stage's YAML with --config, or a run's folder with --weights")
        options.config = DEFAULT_CONFIG
    return options


def read_picture(path: Path) -> Image.Image:
    """The picture at `path`; a UsageError that names the file if it is none."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist: name a picture, such as a PNG or JPEG file")
    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as a picture ({error}): name a PNG or JPEG file") from error


def load_stage(options):
    """The stage as its YAML describes it, with the run's weights and without data, trainer or reward."""
    from jsonargparse import Namespace

    from uae_lightning.stage_cli import parse_stage, quiet

    stages = run_folder.stages_of(options.weights) if options.weights else []
    config = options.config or stages[-1] / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{config} does not exist: give --config the YAML of a stage")
    weights = run_folder.latest_weights(stages)
    args = [f"--model.init_args.{part}.init_args.path={path}" for part, path in weights.items()]
    for name in ("steps", "guidance"):
        if (value := getattr(options, name)) is not None:
            args.append(f"--model.init_args.sampling.{name}={value}")
    quiet()
    cli = parse_stage(["fit", f"--config={config}", *args])
    parser = cli._parser("fit")
    return parser.instantiate_classes(Namespace(model=cli.config.fit.model)).model.eval()


def round_trip(stage, pictures: list[Image.Image], seed: int):
    """(originals [B, 3, H, W], captions, reconstructions [B, 3, H, W]) at the decoder's picture size."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage.to(device)
    with torch.no_grad():
        blank = stage.decoder.decode_latents(torch.zeros(1, *stage.decoder.latent_shape, device=device))
        originals = torch.stack([as_tensor(picture, blank.shape[-1]) for picture in pictures]).to(device)
        captions, reconstructions = stage.reconstruct(originals, seed)
    return originals, captions.texts, reconstructions


def as_tensor(picture: Image.Image, side: int):
    """The central square, scaled: [3, side, side] in [0, 1]."""
    import numpy as np
    import torch
    from PIL import ImageOps

    square = picture if picture.size == (side, side) else ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)


def side_by_side(originals, reconstructions) -> Image.Image:
    """One row per picture: original, reconstruction."""
    import torch

    rows = torch.cat([originals, reconstructions], 3).clamp(0, 1).cpu()  # [B, 3, H, 2W]
    return Image.fromarray((torch.cat(list(rows), 1).permute(1, 2, 0) * 255).round().byte().numpy())
