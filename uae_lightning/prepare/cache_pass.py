"""What `uae cache` computes of which data, the pass over them, and what it says afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning import Trainer

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.data.buckets import BucketedData
from uae_lightning.data.cache_shards import PIXELS, Entry, Header, inspect_all, shards_in
from uae_lightning.data.cached import check_padding
from uae_lightning.data.fingerprint import differences, fingerprint
from uae_lightning.data.image_text import ImageTextData
from uae_lightning.files import write_json
from uae_lightning.prepare.cache_folder import clear
from uae_lightning.prepare.cache_writing import Counts, Prepared, fill
from uae_lightning.prepare.part import Part
from uae_lightning.usage import UsageError


def check_data(data) -> ImageTextData:
    """Raises UsageError where the data have no latents that could be computed once."""
    if not isinstance(data, ImageTextData):
        raise UsageError(
            f"{type(data).__name__} has nothing on disk to cache: a cache is of pictures and captions of one's own, "
            "data.class_path: uae_lightning.data.image_text.ImageTextData"
        )
    if isinstance(data, BucketedData):
        raise UsageError(
            "pictures in a cache are squares: set data.class_path to uae_lightning.data.image_text.ImageTextData, or "
            "train without a cache"
        )
    if data.preparation.random_crop:
        raise UsageError(
            "data.init_args.random_crop is true: latents are of one crop, and a cache would repeat it in every epoch; "
            "set it to false, or train without a cache"
        )
    assert data.held_out  # chosen, and `path` looked at
    return data


def check_model(model: AutoEncoder) -> AutoEncoder:
    if model.encoder is None:
        raise UsageError("there is no encoder to read captions with: `encoder: null` is for training from the cache")
    check_padding(model.decoder)
    return model


def describe(model: AutoEncoder, data: ImageTextData, trainer: Trainer, command: str) -> Header:
    pixels = {PIXELS: str(data.preparation.resolution)}
    return Header(fingerprint(model, trainer.precision) | pixels, command)


def clear_or_check(folder: Path, header: Header, overwrite: bool) -> None:
    """Raises UsageError where the folder holds a cache that other parts have made, or files that no cache wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        clear(folder)
    there, _, _ = inspect_all(folder)
    if there and (differs := differences(there.made_by, header.made_by)):
        raise UsageError(
            f"{folder} holds a cache that differs in {'; '.join(differs)}: --overwrite makes it again, "
            "--to names another folder"
        )


def fill_folder(
    options: argparse.Namespace, model: AutoEncoder, data: ImageTextData, trainer: Trainer, header: Header
) -> Counts:
    """The pass itself; its counts are written too."""
    plugin, device = trainer.precision_plugin, trainer.strategy.root_device
    model = plugin.convert_module(model)
    model.encoder.to(device)
    model.decoder.codec.to(device)  # the transformer can stay where it is

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
