"""What the commands that draw pictures with a run's auto-encoder share: reconstruct and generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.files import check_writable, replacing
from uae_lightning.ranges import Count, NonNegative, Seed
from uae_lightning.usage import Parser, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from uae_lightning.autoencoder import AutoEncoder

DEFAULT_CONFIG = Path("conf/scenes/decoder_rl.yaml")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def add_options(parser: Parser) -> None:
    """Which stage, and how it samples pictures."""
    parser.add_argument("--config", type=Path, metavar="YAML", help="of a stage; default: the last stage of --weights")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="of a run: the latest weights of each part")
    parser.add_argument("--steps", type=Count, help="of the sampler; default: the YAML's")
    parser.add_argument("--guidance", type=NonNegative, help="classifier-free guidance, 1 is none; default: the YAML's")
    parser.add_argument("--seed", type=Seed, default=0, help="of the noise to start from; default: %(default)s")


def check_options(parser: Parser, options) -> None:
    """The scenes' YAML where neither `--config` nor `--weights` is given and it is at hand; else a UsageError."""
    if options.config is None and options.weights is None:
        if not DEFAULT_CONFIG.is_file():
            parser.error("name a stage's YAML with --config, or a run's folder with --weights")
        options.config = DEFAULT_CONFIG


def check_output(path: Path) -> None:
    """Before the models are loaded."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {path} must end in .png, .jpg or .webp")
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: the folder {path.parent} does not exist, make it first")
    check_writable(path, "--output")


def save_picture(picture: Image.Image, path: Path) -> None:
    """All of it or nothing: an earlier picture stays where the disk is full."""
    with replacing(path) as partial:
        picture.save(partial, format=FORMATS[path.suffix.lower()])


def load_chosen(options) -> AutoEncoder:
    """What the options of `add_options` say, on the GPU if there is one."""
    import torch

    from uae_lightning.run.loading import load_autoencoder

    given = {f"sampling.{name}": getattr(options, name) for name in ("steps", "guidance")}
    model = load_autoencoder(options.config, options.weights, {key: v for key, v in given.items() if v is not None})
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
