"""What the commands that draw pictures with a run's auto-encoder share: reconstruct and generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.commands.init import shipped
from uae_lightning.files import check_writable, replacing
from uae_lightning.ranges import Count, NonNegative, Seed, ShareAbove0
from uae_lightning.usage import Parser, UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.refinement import Refinement

DEFAULT_CONFIG = Path("conf/scenes/decoder_rl.yaml")
COST = """\
Several drawings, of which a verifier keeps the best. A picture costs candidates x steps calls of the decoder, twice as
many with guidance. A later round starts from the best picture so far at the noise level --restart: a candidate of it
costs the steps below that level and one more.
"""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def add_options(parser: Parser) -> None:
    """Which stage, and how it samples pictures."""
    parser.add_argument(
        "--config", type=Path, metavar="YAML",
        help="of a stage; default: the last stage of --weights, or else the shipped scenes",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="of a run, or of a stage")
    parser.add_argument("--steps", type=Count, help="of the sampler; default: the YAML's")
    parser.add_argument("--guidance", type=NonNegative, help="classifier-free guidance, 1 is none; default: the YAML's")
    parser.add_argument("--seed", type=Seed, default=0, help="of the noise to start from; default: %(default)s")
    group = parser.add_argument_group("refinement", COST)
    group.add_argument("--candidates", type=Count, default=1, metavar="N", help="drawings in a round; default: 1")
    group.add_argument("--rounds", type=Count, default=1, metavar="N", help="default: 1, which is best-of-N")
    group.add_argument(
        "--restart", type=ShareAbove0, default=0.8, metavar="LEVEL",
        help="from above 0 (the picture as it is) to 1 (drawn anew); default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--verifier", type=Path, metavar="YAML",
        help="of a reward, its class_path and init_args: conf/scenes/verifier.yaml reads picture and text",
    )  # fmt: skip


def given(parser: Parser, args: list[str]):
    """The options, those of `add_options` too, once they can be followed; `config` is the scenes' YAML where neither
    `--config` nor `--weights` is given."""
    add_options(parser)
    options = parser.parse(args)
    if (options.candidates > 1 or options.rounds > 1) and options.verifier is None:
        parser.error("--candidates and --rounds need --verifier, the YAML of a reward that says which drawing is best")
    if options.config is None and options.weights is None:
        options.config = default_config()
    check_output(options.output)
    return options


def default_config() -> Path:
    """The scenes' YAML: of this folder, else the one that comes with the package."""
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else shipped() / DEFAULT_CONFIG.relative_to("conf")


def open_picture(path: Path) -> Image.Image:
    """The picture at `path`, upright and in sRGB; a UsageError that names the file if it is none."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist: name a picture, such as a PNG or JPEG file")
    from uae_lightning.data.images import BadFile, read_picture

    try:
        return read_picture(path).image
    except BadFile as error:
        raise UsageError(f"{path} cannot be read as a picture ({error}): name a PNG or JPEG file") from error


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


def load_refinement(options, *, originals: bool) -> Refinement | None:
    """What the options of the group "refinement" say; None: each text is drawn once.

    Args:
        originals: there are some that the verifier can compare with.
    """
    if options.verifier is None:
        return None
    import torch

    from uae_lightning.refinement import Refinement
    from uae_lightning.run.loading import load_reward

    verifier = load_reward(options.verifier, "--verifier").to("cuda" if torch.cuda.is_available() else "cpu").eval()
    refinement = Refinement(verifier, options.rounds, options.candidates, options.restart)
    refinement.check(originals=originals)
    return refinement


def cost(model: AutoEncoder, refinement: Refinement | None) -> str:
    """How often the decoder is called for a picture, to compare with other settings at equal calls."""
    sampling = model.sampling
    once = model.decoder.evaluations(sampling)
    calls = once if refinement is None else refinement.calls(model)
    steps = -(-calls // sampling.branches)
    as_much = f", as many as one drawing with --steps {steps}" if calls > once else ""
    return f"{calls} decoder calls a picture{as_much}"


def gains(first: list[Tensor], best: list[Tensor], verifier: str) -> str:
    """What the verifier says of the first drawings and of the best ones, [N] scores each."""
    import torch

    before, after = (torch.cat(scores).float().mean().item() for scores in (first, best))
    return f"{verifier}: {before:.4f} of the first drawing, {after:.4f} of the best"
