"""`python -m benchmarks.data`: how fast pictures are read, what a cache saves, and what a data set costs in memory.

  loader   pictures per second of ImageTextData by form of the data and number of workers, and of CachedData; JPEGs of
           the size of a small photograph, scaled and cropped to the resolution; a lap starts the workers too
  step     a step of DecoderPretrain from files and from a cache, reading included; both learn the same (shown first)
  memory   the most that a process holds above what it held before, over one epoch of a small and of a large data set

All is drawn and written to a temporary folder. Ratios are within one interleaved run.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, add_options, compare, finish, interleaved, ratios, run_main, start  # before torch

# isort: split

import lightning as L
import numpy as np
import torch
from PIL import Image

from benchmarks.own_stage import (
    LEARNS,
    build_stage,
    check_equal,
    counted_modules,
    disturb,
    gradients_kept,
    without_trainer,
)
from benchmarks.pretrain import our_step
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.data.cache_shards import Entry, Header, write_shard
from uae_lightning.data.cached import CachedData, CacheIndex, cached_batch
from uae_lightning.data.image_text import ImageTextData, digest
from uae_lightning.data.streams import StreamedData
from uae_lightning.prepare import cache_pass
from uae_lightning.prepare.part import Part
from uae_lightning.scenes.data import scene_batch
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import Batch
from uae_lightning.usage import Parser

CONFIG = Path("conf/scenes/decoder_pretrain.yaml")
PARTS = ("loader", "step", "memory")
BATCH = 8
CAPTION = "A caption of a few dozen words, as people write them. " * 4
FILES, CACHE = "from files", "from the cache"


# ------------------------------------------------------------------------------------------------------ data sets


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of smooth colors with a little noise, which compresses as photographs do."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (height, width, 3), np.int16)
    return encoded(pixels.clip(0, 255).astype(np.uint8), "JPEG")


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_folder(folder: Path, pictures: Iterable[bytes], captions: Iterable[str], suffix: str = ".jpg") -> Path:
    folder.mkdir(parents=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=False)):
        (folder / f"{number:06d}{suffix}").write_bytes(picture)
        (folder / f"{number:06d}.txt").write_text(caption)
    return folder


def write_shards(folder: Path, files: list[Path], shards: int) -> Path:
    """WebDataset shards of pictures and of the captions beside them."""
    folder.mkdir(parents=True)
    each = -(-len(files) // shards)
    for number, first in enumerate(range(0, len(files), each)):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for path in files[first : first + each]:
                tar.add(path, path.name)
                tar.add(path.with_suffix(".txt"), f"{path.stem}.txt")
    return folder


def write_rows(file: Path, files: list[Path]) -> Path:
    rows = [{"image": str(path), "caption": path.with_suffix(".txt").read_text()} for path in files]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_saved(folder: Path, files: list[Path]) -> Path:
    import datasets

    datasets.disable_progress_bars()
    columns = {
        "image": [{"path": None, "bytes": path.read_bytes()} for path in files],
        "caption": [path.with_suffix(".txt").read_text() for path in files],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features).save_to_disk(folder)
    return folder


def write_cache(folder: Path, samples: int, latents: tuple[int, ...], states: tuple[int, int], each: int) -> Path:
    """Random samples of these shapes, in bfloat16 but for the latents."""
    folder.mkdir(parents=True)
    header = Header({"resolution in pixels": "512"}, "")
    for shard, first in enumerate(range(0, samples, each)):
        numbers = range(first, min(first + each, samples))
        tensors = ((torch.randn(latents), torch.randn(states).bfloat16()) for _ in numbers)
        entries = [
            Entry(2 * digest(b"%d" % number), str(number), CAPTION, *pair)
            for number, pair in zip(numbers, tensors, strict=True)
        ]
        write_shard(folder / f"cache-{shard:06d}.safetensors", entries, header)
    return folder


# -------------------------------------------------------------------------------------------------------- loader


def lap(data: StreamedData, batches: int) -> Callable[[], None]:
    """Starts the workers, reads so many batches, ends the workers; the same pictures each time."""

    def read() -> None:
        for _ in itertools.islice(data.training_batches(), batches):
            pass

    return read


def loader(options: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """A row per form and number of workers: pictures per second, and the ratio to a folder read without workers."""
    rng = np.random.default_rng(0)
    pictures = (photograph(rng, *options.photo) for _ in range(options.photos))
    folder = write_folder(root / "photos", pictures, itertools.repeat(CAPTION))
    files = sorted(folder.glob("*.jpg"))
    forms = {
        "folder": folder,
        "JSONL": write_rows(root / "rows.jsonl", files),
        "WebDataset": write_shards(root / "shards", files, 8),
        "datasets": write_saved(root / "saved", files),
    }
    cache = write_cache(root / "cache", options.photos, (16, 64, 64), (64, 2048), 64)
    laps = {}
    for workers in options.workers:
        sizes = {"batch_size": BATCH, "validation_pictures": 4, "num_workers": workers}
        for form, path in forms.items():
            data = ImageTextData(str(path), options.resolution, require_captions=True, **sizes)
            laps[form, workers] = lap(data, options.batches)
        laps["uae cache", workers] = lap(CachedData(str(cache), **sizes), options.batches)
    timed = interleaved(laps, rounds=options.rounds, warmup=options.warmup, device=torch.device("cpu"))
    base = [one.seconds for one in timed["folder", options.workers[0]]]
    rows = []
    for (form, workers), own in timed.items():
        seconds = [one.seconds for one in own]
        speed = ratios(base, seconds)
        rows.append(
            {"form": form, "workers": workers, "pictures/s": options.batches * BATCH / statistics.median(seconds),
             "ratio": speed.median, "low": speed.low, "high": speed.high}
        )  # fmt: skip
    return rows


def loader_table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'form':12}{'workers':>8}{'pictures/s':>12}   ratio to the first (quartiles)"]
    for row in rows:
        speed = f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
        lines.append(f"{row['form']:12}{row['workers']:>8}{row['pictures/s']:>12.0f}   {speed}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- step


def step(options: argparse.Namespace, device: torch.device, root: Path) -> tuple[dict[str, float], list[Row]]:
    """(equality, rows) of a step of DecoderPretrain from pictures and captions, and from a cache of them."""
    dtype = [f"--model.autoencoder.{part}.dtype={options.dtype}" for part in ("encoder", "decoder")]
    stage = build_stage(options.config, LEARNS[options.train], *dtype)
    if options.train == "lora":
        disturb(stage, 0.01)
    scenes = scene_batch("train", 0, list(range(options.pictures)), max_objects=3)
    pixels = (scenes.images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    folder = write_folder(root / "scenes", (encoded(one, "PNG") for one in pixels), scenes.captions, ".png")
    sizes = {"batch_size": options.batch_size, "validation_pictures": 1, "num_workers": 0}
    files = ImageTextData(str(folder), scenes.images.shape[-1], require_captions=True, **sizes)
    cache = CachedData(str(filled(stage.autoencoder, files, root / "step")), **sizes)
    stage.to(device)
    without_trainer(stage)
    found = differences(stage, files, cache.source, device)
    check_equal("a step from files and from the cache", found, options.dtype)
    optimizer = stage.configure_optimizers()
    streams = {FILES: files.training_batches(), CACHE: cache.training_batches()}
    steps = {
        name: lambda batches=batches: our_step(stage, optimizer, moved(next(batches), device))
        for name, batches in streams.items()
    }
    modules = dict.fromkeys(steps, counted_modules(stage))
    rows = compare("step", steps, baseline=FILES, modules=modules, options=options, device=device)
    return found, rows


def filled(model: AutoEncoder, data: ImageTextData, folder: Path) -> Path:
    """What `uae cache` would write."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    header = cache_pass.describe(model, data, trainer, "")
    cache_pass.clear_or_check(folder, header, overwrite=False)
    options = argparse.Namespace(to=folder, part=Part(), shard_mb=64)
    cache_pass.fill_folder(options, model, data, trainer, header)
    return folder


def moved(batch: Batch, device: torch.device) -> Batch:
    batch.images = batch.images.to(device)
    if batch.latents is not None:
        batch.latents, batch.embedded = batch.latents.to(device), tuple(one.to(device) for one in batch.embedded)
    return batch


def differences(
    stage: DecoderPretrain, files: ImageTextData, cache: CacheIndex, device: torch.device
) -> dict[str, float]:
    """Relative differences of loss and gradients on the same pictures and noise."""
    batch = moved(next(files.training_batches()), device)
    places = {sample.read().key: sample for sample in map(cache.sample, range(len(cache)))}
    cached = moved(cached_batch([places[key] for key in batch.keys]), device)
    losses, gradients = [], []
    for one in (batch, cached):
        with gradients_kept(stage) as kept:
            loss = stage.training_step(one, 0)
            loss.backward()
        losses.append(loss.item())
        gradients.append(kept)
    scale = max(gradient.abs().max() for gradient in gradients[0])
    return {
        "loss": abs(losses[0] - losses[1]) / abs(losses[0]),
        "gradients": float(max((a - b).abs().max() for a, b in zip(*gradients, strict=True)) / scale),
    }


# -------------------------------------------------------------------------------------------------------- memory


def memory(options: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """A row per form: peak MB of one epoch, by number of samples."""
    rows = []
    for form in ("folder", "WebDataset", "uae cache"):
        peaks = {}
        for samples in options.samples:
            data = many(form, samples, root / f"{form}-{samples}")
            peaks[samples] = peak_of(lambda data=data, samples=samples: lap(data, samples // BATCH)())
        first, last = (peaks[samples] for samples in (options.samples[0], options.samples[-1]))
        rows.append({"form": form, "MB": peaks, "growth MB": last - first})
    return rows


def many(form: str, samples: int, root: Path) -> StreamedData:
    """So many small samples, not opened yet."""
    sizes = {"batch_size": BATCH, "validation_pictures": 4, "num_workers": 0}
    if form == "uae cache":
        return CachedData(str(write_cache(root, samples, (4, 4, 4), (16, 32), 1000)), **sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (samples, 8, 8, 3), np.uint8)
    folder = write_folder(root, (encoded(one, "PNG") for one in pixels), itertools.repeat("a caption"), ".png")
    if form == "WebDataset":
        folder = write_shards(root.with_suffix(".shards"), sorted(folder.glob("*.png")), -(-samples // 500))
    return ImageTextData(str(folder), 8, require_captions=True, **sizes)


def peak_of(run: Callable[[], None]) -> float:
    """MB that a process of its own holds at most during the call, above what it held before; Linux only."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_report_peak, args=(run, sender))
    process.start()
    sender.close()
    peak = receiver.recv()
    process.join()
    return peak


def _report_peak(run: Callable[[], None], sender) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of now
    before = _status("VmHWM")
    run()
    sender.send((_status("VmHWM") - before) / 1000)


def _status(name: str) -> int:
    """kB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def memory_table(rows: list[dict[str, Any]]) -> str:
    samples = list(rows[0]["MB"])
    lines = [f"{'form':12}" + "".join(f"{f'MB at {count:,}':>14}" for count in samples) + f"{'growth MB':>12}"]
    for row in rows:
        peaks = "".join(f"{row['MB'][count]:>14.1f}" for count in samples)
        lines.append(f"{row['form']:12}{peaks}{row['growth MB']:>12.1f}")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------- command line


def main(args: list[str]) -> None:
    options = parse(args)
    device, results, rows = start(options), {}, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if "memory" in options.parts:  # first: the process is still small
            results["memory"] = memory(options, root / "memory")
            print(memory_table(results["memory"]), end="\n\n", flush=True)
        if "loader" in options.parts:
            results["loader"] = loader(options, root)
            print(loader_table(results["loader"]), end="\n\n", flush=True)
        if "step" in options.parts:
            results["equality"], rows = step(options, device, root)
    finish(" ".join(["python -m benchmarks.data", *args]), options, rows, **results)


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all")
    parser.add_argument("--photos", type=int, default=200, help="of the loader's data sets (default: %(default)s)")
    parser.add_argument(
        "--photo", type=int, nargs=2, default=[640, 480], metavar=("W", "H"), help="their size (default: 640 480)"
    )
    parser.add_argument("--resolution", type=int, default=256, help="they are scaled to (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="default: 0 2")
    parser.add_argument("--batches", type=int, default=16, help=f"of {BATCH}, in a lap (default: %(default)s)")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 20_000], help="default: 1000 20000")
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML of the step (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=64, help="of the step's data set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of the step (default: %(default)s)")
    parser.add_argument("--train", default="all", choices=["lora", "all"], help="of the decoder (default: %(default)s)")
    add_options(parser)
    return parser.parse(args)


if __name__ == "__main__":
    run_main(main)
