"""`uae cache`: latents and caption states of a stage's data, computed once into safetensors shards."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.files import check_writable, enough_space, write_json
from uae_lightning.ranges import Count
from uae_lightning.run.masking import masked_command
from uae_lightning.usage import Parser, UsageError

if TYPE_CHECKING:
    from lightning import Trainer

    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.data.cache_shards import Entry, Header
    from uae_lightning.data.image_text import ImageTextData
    from uae_lightning.prepare.cache_writing import Counts, Part, Prepared

DESCRIPTION = """\
Computes the VAE's latents and the encoder's states of every picture with caption once, for stage 1 to train from.

    uae cache --config conf/real/decoder_pretrain.yaml --to cache
    uae cache --config conf/real/decoder_pretrain.yaml --to cache --data.init_args.path photos --batch-size 16

Any option of `uae fit` can follow, several --config too: they say which parts, and which data (a folder, a JSONL,
WebDataset shards or a `datasets` data set, by ImageTextData). Stopped or killed, the same command goes on. On several
machines or cards each computes a part, into one folder: --part 1/4, --part 2/4, ... (pictures that are there twice are
then found within a part only, or in what was there before).

Afterwards:

    uae fit --config conf/real/decoder_pretrain.yaml --config conf/real/cached.yaml --data.init_args.path cache

(conf/real/cached.yaml says how to train without the encoder in memory). Made with other weights, another template,
precision or resolution than the stage has, a cache is refused; `uae cache ... --overwrite` makes it again. Shards hold
checksums, which are compared whenever a sample is read.
"""


def main(args: list[str]) -> None:
    options, fit_options = parse(args)
    from uae_lightning.prepare.cache_folder import claimed  # imports torch, which `--help` need not wait for

    with enough_space(options.to), claimed(options.to, options.part):
        model, data, trainer = load(fit_options)
        data.batch_size = options.batch_size or data.batch_size
        header = describe(model, data, trainer, masked_command(["uae", "cache", *fit_options, "--to", str(options.to)]))
        clear_or_check(options.to, header, options.overwrite)
        counts = fill_folder(options, model, data, trainer, header)
    print(summary(counts, options.to, options.part, data.source.name))


# ------------------------------------------------------------------------------------------------ command line


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those that `uae fit` would read."""
    parser = Parser(
        prog="uae cache", usage="uae cache --config YAML ... --to FOLDER [options]", description=DESCRIPTION
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the cache goes (needed)")
    parser.add_argument("--batch-size", type=Count, metavar="N", help="pictures at a time; default: the data's")
    parser.add_argument("--part", type=part, default="1/1", metavar="I/N", help="the Ith of N parts; default: all")
    parser.add_argument(
        "--shard-mb", type=Count, default=256, metavar="MB", help="size of a shard; default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the shards of the cache in FOLDER first")
    options, rest = parser.parse_known_args(args)
    if options.to is None:
        parser.error("name the folder to write to with --to")
    if not any(word.split("=")[0] in ("--config", "-c") for word in rest):
        parser.error("name the YAML of a stage with --config")
    if options.overwrite and options.part.of > 1:
        parser.error("--overwrite would delete what the other parts write: delete the folder, then start the parts")
    check_writable(options.to / "cache.json", "--to")
    return options, rest


def part(text: str) -> Part:
    from uae_lightning.prepare.cache_writing import Part

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be such as 2/4, the second of four parts, got {text!r}")
    return Part(int(match[1]), int(match[2]))


# ------------------------------------------------------------------------------------------------ what to compute with


def load(fit_options: list[str]) -> tuple[AutoEncoder, ImageTextData, Trainer]:
    """As `uae fit` would have them; data first, where mistakes are found before weights are loaded."""
    import lightning as L
    from jsonargparse import Namespace

    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.run.compiled import build
    from uae_lightning.run.stage_cli import errors_explained, parse_stage, quiet

    quiet()
    cli = parse_stage(["fit", *fit_options])
    config, parser = cli.config.fit, cli._parser("fit")
    with errors_explained():
        data = check_data(parser.instantiate(Namespace(data=config.data)).data)
        model = build(AutoEncoder, config.model.init_args.autoencoder).eval()
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return check_model(model), data, trainer


def check_data(data) -> ImageTextData:
    """Raises UsageError where the data have no latents that could be computed once."""
    from uae_lightning.data.image_text import ImageTextData

    if not isinstance(data, ImageTextData):
        raise UsageError(
            f"{type(data).__name__} has nothing on disk to cache: a cache is of pictures and captions of one's own, "
            "data.class_path: uae_lightning.data.image_text.ImageTextData"
        )
    if data.preparation.random_crop:
        raise UsageError(
            "data.init_args.random_crop is true: latents are of one crop, and a cache would repeat it in every epoch; "
            "set it to false, or train without a cache"
        )
    assert data.held_out  # chosen, and `path` looked at
    return data


def check_model(model: AutoEncoder) -> AutoEncoder:
    from uae_lightning.data.cached import check_padding

    if model.encoder is None:
        raise UsageError("there is no encoder to read captions with: `encoder: null` is for training from the cache")
    check_padding(model.decoder)
    return model


def describe(model: AutoEncoder, data: ImageTextData, trainer: Trainer, command: str) -> Header:
    from uae_lightning.data.cache_shards import PIXELS, Header
    from uae_lightning.data.fingerprint import fingerprint

    pixels = {PIXELS: str(data.preparation.resolution)}
    return Header(fingerprint(model, trainer.precision) | pixels, command)


def clear_or_check(folder: Path, header: Header, overwrite: bool) -> None:
    """Raises UsageError where the folder holds a cache that other parts have made, or files that no cache wrote."""
    from uae_lightning.data.cache_shards import inspect_all
    from uae_lightning.data.fingerprint import differences
    from uae_lightning.prepare.cache_folder import clear

    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        clear(folder)
    there, _, _ = inspect_all(folder)
    if there and (differs := differences(there.made_by, header.made_by)):
        raise UsageError(
            f"{folder} holds a cache that differs in {'; '.join(differs)}: --overwrite makes it again, "
            "--to names another folder"
        )


# ------------------------------------------------------------------------------------------------ the work


def fill_folder(options, model: AutoEncoder, data: ImageTextData, trainer: Trainer, header: Header) -> Counts:
    """The pass itself; its counts are written too."""
    from uae_lightning.prepare.cache_writing import fill

    plugin, device = trainer.precision_plugin, trainer.strategy.root_device
    model = plugin.convert_module(model)
    model.encoder.to(device)
    getattr(model.decoder, "vae", model.decoder).to(device)  # the transformer can stay where it is

    def compute(pictures: list[Prepared]) -> list[Entry]:
        with plugin.forward_context():
            return entries(model, pictures, plugin.convert_input, device)

    counts = fill(options.to, data, options.part, header, compute, options.shard_mb * 2**20)
    counts.control_texts = model.encoder.control_texts
    write_json(options.to / f"report{options.part.name}.json", vars(counts))
    return counts


def entries(model: AutoEncoder, pictures: list[Prepared], convert, device) -> list[Entry]:
    """Latents and states as training steps would compute them.

    Raises:
        UsageError: data and decoder differ in resolution.
    """
    import torch

    from uae_lightning.data.cache_shards import Entry

    with torch.no_grad():
        images = convert(torch.stack([picture.pixels for picture in pictures]).float() / 255)
        latents = model.decoder.encode_images(images.to(device)).cpu()
        states, mask = (values.cpu() for values in model.embed([picture.caption for picture in pictures]))
    if tuple(latents.shape[1:]) != tuple(model.decoder.latent_shape):
        raise UsageError(
            f"data.init_args.resolution ({images.shape[-1]}) does not fit the decoder: latents of "
            f"{tuple(latents.shape[1:])} where it has {tuple(model.decoder.latent_shape)}; set it to "
            "model.autoencoder.decoder.resolution"
        )
    return [
        Entry(picture.content, picture.key, picture.caption, latents[row], states[row, mask[row]])
        for row, picture in enumerate(pictures)
    ]


def summary(counts: Counts, folder: Path, part: Part, source: str) -> str:
    from uae_lightning.data.cache_shards import shards_in

    lines = [
        f"{source}: {counts.read} read = {counts.kept} kept ({counts.computed} computed now) + "
        f"{counts.duplicates} duplicates + {counts.held_out} held out + {counts.skipped} skipped"
    ]
    if counts.converted:
        lines.append("Converted: " + ", ".join(f"{what} ({n})" for what, n in counts.converted.most_common()))
    if counts.skipped:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.skipped_by_reason.most_common())
        lines.append(f"Skipped: {reasons}; listed in {folder / f'skipped{part.name}.jsonl'}")
    if counts.control_texts:
        lines.append(f"{counts.control_texts} captions hold control tokens of the encoder, which were read as text")
    if counts.left_over:
        lines.append(
            f"{counts.left_over} samples of the cache are not, or no longer, in {source} (other data, pictures "
            "removed, captions edited) and are trained on all the same: --overwrite makes a cache without them"
        )
    shards = shards_in(folder)
    megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
    lines.append(f"Cache: {folder}, {len(shards)} shards, {megabytes:,.1f} MB")
    lines.append(
        "Train from it: uae fit --config YAML --data uae_lightning.data.cached.CachedData "
        f"--data.init_args.path {folder}"
    )
    return "\n".join(lines)
