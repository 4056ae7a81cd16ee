"""`uae cache`: latents and caption states of a stage's data, computed once into safetensors shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.files import check_writable, enough_space
from uae_lightning.prepare.part import Part
from uae_lightning.ranges import Count
from uae_lightning.run.masking import masked_command
from uae_lightning.usage import Parser

if TYPE_CHECKING:
    from lightning import Trainer

    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.data.image_text import ImageTextData

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
    from uae_lightning.prepare import cache_pass  # imports torch, which `--help` need not wait for
    from uae_lightning.prepare.cache_folder import claimed

    with enough_space(options.to), claimed(options.to, options.part):
        model, data, trainer = load(fit_options)
        data.batch_size = options.batch_size or data.batch_size
        command = masked_command(["uae", "cache", *fit_options, "--to", str(options.to)])
        header = cache_pass.describe(model, data, trainer, command)
        cache_pass.clear_or_check(options.to, header, options.overwrite)
        counts = cache_pass.fill_folder(options, model, data, trainer, header)
    print(cache_pass.summary(counts, options.to, options.part, data.source.name))


# ------------------------------------------------------------------------------------------------ command line


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those that `uae fit` would read."""
    parser = Parser(
        prog="uae cache", usage="uae cache --config YAML ... --to FOLDER [options]", description=DESCRIPTION
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the cache goes (needed)")
    parser.add_argument("--batch-size", type=Count, metavar="N", help="pictures at a time; default: the data's")
    parser.add_argument(
        "--part", type=Part.read, default=Part(), metavar="I/N", help="the Ith of N parts; default: all"
    )
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


# ------------------------------------------------------------------------------------------------ what to compute with


def load(fit_options: list[str]) -> tuple[AutoEncoder, ImageTextData, Trainer]:
    """As `uae fit` would have them; data first, where mistakes are found before weights are loaded."""
    import lightning as L
    from jsonargparse import Namespace

    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.prepare.cache_pass import check_data, check_model
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
