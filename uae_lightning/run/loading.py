"""The auto-encoder as a run left it, for the commands that use it and train nothing: reconstruct, generate, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uae_lightning.files import check_writable
from uae_lightning.ranges import Count, NonNegative, Seed
from uae_lightning.run import folder as run_folder
from uae_lightning.run.spec import read_stage_yaml
from uae_lightning.usage import Parser, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from uae_lightning.autoencoder import AutoEncoder

AUTOENCODER = "uae_lightning.autoencoder.AutoEncoder"
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
    from uae_lightning.files import replacing

    with replacing(path) as partial:
        picture.save(partial, format=FORMATS[path.suffix.lower()])


def load_chosen(options) -> AutoEncoder:
    """What the options of `add_options` say, on the GPU if there is one."""
    import torch

    given = {f"sampling.{name}": getattr(options, name) for name in ("steps", "guidance")}
    model = load_autoencoder(options.config, options.weights, {key: v for key, v in given.items() if v is not None})
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def load_autoencoder(config: Path | None, weights: Path | None, settings: dict[str, Any] | None = None) -> AutoEncoder:
    """As the YAML of a stage describes it, with the weights of a run.

    Args:
        config: YAML of a stage; None is that of the last stage of `weights`.
        weights: folder of a run, whose latest weights of each part are taken; None takes those the YAML names.
        settings: dotted keys below `model.autoencoder` and what they are set to.

    Raises:
        FileNotFoundError: there is no such run or YAML, or the run has no stage yet.
    """
    stages = run_folder.stages_of(weights) if weights else []
    paths = {f"{part}.path": path for part, path in run_folder.latest_weights(stages).items()}
    return build_autoencoder(config or last_config(weights, stages), paths | (settings or {}))


def last_config(run: Path, stages: Sequence[Path]) -> Path:
    if not stages:
        raise FileNotFoundError(f"{run} has no stage that was trained: run `uae run` to its end first")
    return stages[-1] / "config.yaml"


def build_autoencoder(config: Path, settings: dict[str, Any]) -> AutoEncoder:
    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.run.compiled import build
    from uae_lightning.run.stage_cli import quiet

    if not config.is_file():
        raise FileNotFoundError(f"{config} does not exist: give --config the YAML of a stage")
    quiet()
    parts = read_autoencoder(config, settings)
    if parts["init_args"].get("encoder") is None:
        raise UsageError(f"{config} trains without an encoder: give --config the YAML of a stage that has one")
    try:
        return build(AutoEncoder, parts).eval()
    except UsageError as error:
        raise UsageError(f"{config}: {error}") from error


def read_autoencoder(config: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a stage's YAML says of its auto-encoder, interpolations resolved: class_path and init_args. Nothing else of
    the YAML is read.

    Args:
        settings: PART.OPTION -> value on top of it.

    Raises:
        UsageError: it is no YAML of a stage.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    content = read_stage_yaml(config)
    try:
        model = OmegaConf.to_container(OmegaConf.create({"model": content.get("model")}), resolve=True)["model"]
        found = model["init_args"]["autoencoder"]
        found = read_stage_yaml(config.parent / found) if isinstance(found, str) else found
        found = found if "class_path" in found else {"class_path": AUTOENCODER, "init_args": found}
        for key, value in settings.items():
            part, name = key.split(".")
            inner = found["init_args"].setdefault(part, {})
            inner = inner.setdefault("init_args", {}) if "class_path" in inner else inner
            inner[name] = str(value) if isinstance(value, Path) else value
        return found
    except OmegaConfBaseException as error:
        raise UsageError(f"{config}: {' '.join(str(error).split())}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{config} has no model.init_args.autoencoder: it is not the YAML of a stage, or it is of version 0.1 "
            "(CHANGELOG.md)"
        ) from error
