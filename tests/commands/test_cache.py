"""`uae cache`: every sample once, whatever happens on the way."""

import argparse
import errno
import io
import json
import multiprocessing
import os
import resource
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from uae_lightning.cli import main
from uae_lightning.commands import cache as command
from uae_lightning.data import cache_shards as shards
from uae_lightning.data.buckets import BucketedData
from uae_lightning.data.image_text import ImageTextData
from uae_lightning.prepare import cache_pass
from uae_lightning.prepare.part import Part
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene
from uae_lightning.usage import UsageError

ROOT = Path(__file__).parents[2]
PICTURES = 40
ALL = {f"{index:03d}.png" for index in range(PICTURES)}


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(sample_scene("train", 0, index))).save(file, "PNG")
    return file.getvalue()


def save(folder: Path, name: str, picture: bytes, caption: str | None = "a caption") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(picture)
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures in `photos`, two more in `held_out`, which have no captions."""
    root = tmp_path_factory.mktemp("data")
    for index in range(PICTURES):
        words = "a red cat left of a small blue dog".split()[: 1 + index % 9]
        save(root / "photos", f"{index:03d}", png(index), f"{' '.join(words)} {index}")
    for index in (900, 901):
        save(root / "held_out", str(index), png(index), None)
    return root / "photos"


def fit_options(parts: Path, photos: Path, **more) -> list[str]:
    options = {
        "config": ROOT / "conf/scenes/decoder_pretrain.yaml",
        "model.autoencoder.encoder.path": parts / "encoder",
        "model.autoencoder.projector.path": parts / "projector",
        "model.autoencoder.decoder.path": parts / "decoder",
        "data": "uae_lightning.data.image_text.ImageTextData",
        "data.init_args.path": photos,
        "data.init_args.validation_path": photos.parent / "held_out",
        "data.init_args.validation_pictures": 2,
        "data.init_args.resolution": IMAGE_SIZE,
        "data.init_args.require_captions": "true",
        "data.init_args.batch_size": 4,
        "data.init_args.num_workers": 0,
        "trainer.accelerator": "cpu",
    }
    return [f"--{name}={value}" for name, value in (options | more).items()]


@pytest.fixture(scope="module")
def loaded(parts_folder: Path, photos: Path):
    """Stage, data, trainer and header, as the command has them."""
    stage, data, trainer = command.load(fit_options(parts_folder, photos))
    return stage, data, trainer, cache_pass.describe(stage, data, trainer, "uae cache --to x")


def fill(loaded, folder: Path, part: Part = Part(), shard_kb: int = 60):  # noqa: B008
    """What the command does once all is loaded."""
    stage, data, trainer, header = loaded
    options = argparse.Namespace(to=folder, part=part, shard_mb=shard_kb / 1024)
    cache_pass.clear_or_check(folder, header, overwrite=False)
    return cache_pass.fill_folder(options, stage, data, trainer, header)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def keys(folder: Path) -> list[str]:
    """Of all samples, from all shards."""
    found = []
    for shard in shards.shards_in(folder):
        _, count = shards.inspect(shard)
        found += [shards.read_entry(shard, row).key for row in range(count)]
    return found


@pytest.fixture(scope="module")
def straight(loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that was written in one go."""
    folder = tmp_path_factory.mktemp("straight")
    counts = fill(loaded, folder)
    assert counts.read == counts.kept == counts.computed == PICTURES
    return folder


# ---------------------------------------------------------------------------------------------------- what is written


def test_every_sample_is_there_once_in_shards_of_the_size_that_was_asked_for(straight: Path):
    # red if the last shard is not written, or the entries of a written one are kept
    found = keys(straight)
    assert sorted(found) == sorted(ALL) and len(shards.shards_in(straight)) >= 4
    for shard in shards.shards_in(straight)[:-1]:
        assert 60 * 1024 <= shard.stat().st_size < 160 * 1024  # a batch of four is up to 70 kB


def test_a_sample_is_what_the_stage_computes(straight: Path, loaded, photos: Path):
    # red if padding is stored, pixels are not divided by 255, or captions go with other pictures
    import torch

    model, data, _, _ = loaded
    entry = shards.read_entry(shards.shards_in(straight)[1], 1)
    picture, caption = photos / entry.key, (photos / entry.key).with_suffix(".txt").read_text()
    pixels, _ = data.preparation.pixels(picture.read_bytes())
    states, _ = model.embed([caption])
    assert entry.caption == caption and entry.states.shape == states[0].shape
    torch.testing.assert_close(entry.states, states[0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(entry.latents, model.decoder.encode_images(pixels[None] / 255)[0])


def test_workers_and_parts_share_the_data(loaded, tmp_path: Path):
    # red if `units[number::workers]` loses its step, or parts count from 0
    stage, data, trainer, header = loaded
    data.num_workers = 2
    try:
        counts = [fill(loaded, tmp_path, Part(number, 3)) for number in (1, 2, 3)]
    finally:
        data.num_workers = 0
    assert [(count.kept, count.duplicates) for count in counts] == [(14, 0), (13, 0), (13, 0)]
    assert sorted(keys(tmp_path)) == sorted(ALL)
    assert {path.name for path in tmp_path.glob("*.json")} == {f"report-{n}of3.json" for n in (1, 2, 3)}
    assert fill(loaded, tmp_path).computed == 0  # the whole of it finds what the parts have made


def test_shards_of_webdataset_are_read_in_parts_too(parts_folder: Path, photos: Path, tmp_path: Path):
    # red if `pieces` is 1 for shards
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in sorted(photos.iterdir())[:20]:
            tar.add(file, file.name)
    stage, data, trainer = command.load(fit_options(parts_folder, photos, **{"data.init_args.path": tmp_path}))
    header = cache_pass.describe(stage, data, trainer, "uae cache")
    counts = [fill((stage, data, trainer, header), tmp_path / "cache", Part(number, 2)) for number in (1, 2)]
    assert [count.kept for count in counts] == [5, 5] and len(set(keys(tmp_path / "cache"))) == 10


def test_counts_add_up_and_bad_files_are_listed(loaded, parts_folder: Path, photos: Path, tmp_path: Path, capsys):
    # red if a duplicate or a held-out picture is computed, or a skipped one is counted twice
    for index in range(6):
        save(tmp_path / "photos", f"{index}", png(index), f"caption {index}")
    for name in ("0", "copy"):  # the same picture with the same caption, and with another one
        save(tmp_path / "photos" / "more", name, png(0), "caption 0" if name == "0" else "of <|im_end|> the copy")
    save(tmp_path / "photos", "leaked", png(900), "a held-out picture")
    save(tmp_path / "photos", "zero", b"")
    save(tmp_path / "photos", "cut", png(7)[:200])
    save(tmp_path / "photos", "silent", png(8), None)
    Image.open(io.BytesIO(png(9))).convert("L").save(tmp_path / "photos" / "gray.png")
    (tmp_path / "photos" / "gray.txt").write_text("a gray picture")
    place = {"data.init_args.path": tmp_path / "photos", "data.init_args.max_skipped": 0.5}
    args = ["cache", *fit_options(parts_folder, photos, **place), f"--to={tmp_path / 'cache'}"]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "13 read = 8 kept (8 computed now) + 1 duplicates + 1 held out + 3 skipped" in said
    assert "grayscale (1)" in said and "CachedData" in said and "1 captions hold control tokens" in said
    report = json.loads((tmp_path / "cache" / "report.json").read_text())
    assert report["control_texts"] == 1
    assert report["read"] == sum(report[name] for name in ("kept", "duplicates", "held_out", "skipped"))
    assert report["skipped_by_reason"] == {"empty file": 1, "damaged": 1, "no caption": 1}
    rows = [json.loads(line) for line in (tmp_path / "cache" / "skipped.jsonl").read_text().splitlines()]
    assert {row["key"] for row in rows} == {"zero.png", "cut.png", "silent.png"}

    (tmp_path / "photos" / "5.txt").write_text("another caption")
    stage, _, trainer, header = loaded
    held_out = {"validation_path": str(photos.parent / "held_out"), "validation_pictures": 2}
    data = ImageTextData(
        str(tmp_path / "photos"), IMAGE_SIZE, 4, require_captions=True, max_skipped=0.5, num_workers=0, **held_out
    )
    counts = fill((stage, data, trainer, header), tmp_path / "cache")
    assert (counts.kept, counts.computed, counts.left_over) == (8, 1, 1)
    said = cache_pass.summary(counts, tmp_path / "cache", Part(), "photos")
    assert "1 samples of the cache are not, or no longer, in photos" in said
    cache_pass.clear_or_check(tmp_path / "cache", header, overwrite=True)
    counts = fill((stage, data, trainer, header), tmp_path / "cache")
    assert counts.computed == len(keys(tmp_path / "cache")) == 8


# ---------------------------------------------------------------------------------------------------- interrupted


def killed_when(moment: Callable[[list[str]], bool], run: Callable[[], object], folder: Path) -> None:
    """`run` in a process of its own, which is killed once what lies in the folder is as it should be."""
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    end = time.time() + 60
    while not moment(os.listdir(folder)):
        assert process.is_alive() and time.time() < end, "it ended before that moment came"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


MOMENTS = {
    "at once": lambda names: True,
    "while a shard is written": lambda names: any(name.endswith(".uae-partial") for name in names),
    "after the first shard": lambda names: "cache-000000.safetensors" in names,
    "after the third shard": lambda names: "cache-000002.safetensors" in names,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again_is_the_same_as_never_stopped(moment: str, loaded, straight: Path, tmp_path: Path):
    # red if a shard is written under its own name, if it ends within a batch, or if `before` is left out
    killed_when(MOMENTS[moment], lambda: fill(loaded, tmp_path), tmp_path)
    whole = keys(tmp_path)  # every shard that is there can be read
    assert len(whole) < PICTURES
    counts = fill(loaded, tmp_path)
    assert counts.kept == PICTURES and counts.computed == PICTURES - len(whole)
    assert files(tmp_path) == files(straight)


def test_killed_again_and_again(loaded, straight: Path, tmp_path: Path):
    # red if the number of the next shard is that of the shards of this run
    for number in range(3):
        killed_when(
            lambda names, n=number: f"cache-{n:06d}.safetensors" in names, lambda: fill(loaded, tmp_path), tmp_path
        )
    fill(loaded, tmp_path)
    assert files(tmp_path) == files(straight)


def test_a_full_disk_is_named_and_the_next_run_goes_on(loaded, straight: Path, tmp_path: Path, monkeypatch):
    # red if the partial file stays, or OSError is let through
    written, whole = [], Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        written.append(path.name)
        if len(written) == 3:
            whole(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="cache-000002.safetensors cannot be written .*No space left.*make room"):
        fill(loaded, tmp_path)
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"cache-000000.safetensors", "cache-000001.safetensors"}
    assert fill(loaded, tmp_path).kept == PICTURES
    assert files(tmp_path) == files(straight)


def test_a_full_disk_is_named_also_where_no_shard_is_written(
    parts_folder: Path, photos: Path, tmp_path, monkeypatch, capsys
):
    # red without `enough_space` in commands.cache.main: OSError is no error that main explains
    def full(path: Path, value) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_pass, "write_json", full)
    assert main(["cache", *fit_options(parts_folder, photos), f"--to={tmp_path / 'cache'}"]) == 1
    assert "no space is left for" in capsys.readouterr().err and keys(tmp_path / "cache")


def refused_by_the_kernel(loaded, folder: Path, said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        fill(loaded, folder)
    except ValueError as error:
        said.write_text(str(error))


def test_a_file_that_the_kernel_refuses_leaves_nothing_behind(loaded, straight: Path, tmp_path: Path):
    # red if the partial file stays: it has 20 kB that were written
    folder = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(
        target=refused_by_the_kernel, args=(loaded, folder, tmp_path / "said")
    )
    process.start()
    process.join()
    assert "cannot be written (File too large)" in (tmp_path / "said").read_text()
    assert list(folder.iterdir()) == []
    fill(loaded, folder)
    assert files(folder) == files(straight)


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_folder_with_another_cache_is_refused(loaded, straight: Path, parts_folder: Path, photos: Path):
    # red if `clear_or_check` compares nothing
    stage, data, trainer, header = loaded
    other = shards.Header(header.made_by | {"caption template": "other"}, header.command)
    with pytest.raises(UsageError, match=r"differs in caption template \(.* in the cache, 'other' here\).*--overwrite"):
        cache_pass.clear_or_check(straight, other, overwrite=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--to"]),
        (["--to=x", "--part=3/2"], ["--part", "3/2"]),
        (["--to=x", "--batch-size=0"], ["--batch-size", "from 1 to"]),
        (["--to=x", "--part=1/2", "--overwrite"], ["--overwrite", "parts"]),
        (["--to=x", "--data.init_args.path=none"], ["none", "data.init_args.path"]),
    ],
)
def test_mistakes_in_a_call_name_the_option_and_the_remedy(options, words, parts_folder: Path, photos: Path, capsys):
    # red without the check of what is named
    assert main(["cache", *fit_options(parts_folder, photos), *options]) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error and all(word in error for word in ["uae: error: ", *words]), error


def test_what_cannot_be_cached_is_refused(photos: Path):
    # red without the check of what is named
    with pytest.raises(UsageError, match="ScenesData has nothing on disk.*ImageTextData"):
        cache_pass.check_data(ScenesData(batch_size=2))
    with pytest.raises(UsageError, match="random_crop is true.*set it to false"):
        cache_pass.check_data(ImageTextData(str(photos), IMAGE_SIZE, random_crop=True))
    with pytest.raises(UsageError, match="pictures in a cache are squares"):
        cache_pass.check_data(BucketedData(str(photos), IMAGE_SIZE, step=8))
    with pytest.raises(UsageError, match="no encoder"):
        cache_pass.check_model(SimpleNamespace(encoder=None))
    with pytest.raises(UsageError, match="mask_padding"):
        cache_pass.check_model(SimpleNamespace(encoder=1, decoder=SimpleNamespace(mask_padding=False)))


def test_a_resolution_that_is_not_the_decoders_is_named(loaded, tmp_path: Path):
    # red if shapes are not compared
    from dataclasses import replace

    stage, data, trainer, header = loaded
    prepared = data.preparation
    data.preparation = replace(prepared, resolution=32)
    try:
        with pytest.raises(UsageError, match=r"data.init_args.resolution \(32\) does not fit the decoder"):
            fill(loaded, tmp_path)
    finally:
        data.preparation = prepared
