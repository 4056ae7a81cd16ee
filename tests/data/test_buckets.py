"""Pictures of their own shape, in batches of one shape each."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import own_pictures
import pytest
import torch
from own_pictures import take, used
from PIL import Image

from uae_lightning.data.buckets import BucketedData, bucket_shapes, nearest
from uae_lightning.data.images import cropped
from uae_lightning.models.diffusers_decoder import DiffusersDecoder
from uae_lightning.stages import decoder_pretrain
from uae_lightning.stages.decoder_pretrain import DecoderPretrain, noise_by_row
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

PICTURES, RESOLUTION, STEP = 90, 64, 8


def picture(index: int) -> Image.Image:
    rng = np.random.default_rng(index)
    width, height = (int(side) for side in rng.integers(60, 160, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for index in range(PICTURES):
        picture(index).save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(f"picture {index}")
    return folder


def data_for(folder: Path, **options) -> BucketedData:
    options = {"resolution": RESOLUTION, "step": STEP, "max_skipped": 1.0} | options
    return own_pictures.data_for(folder, kind=BucketedData, **options)


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (512, 32), (96, 8), (64, 16)])
def test_no_shape_has_more_pixels_than_the_square(resolution: int, step: int):
    # red if sides are rounded up, or the square is there twice
    shapes = bucket_shapes(resolution, step)
    assert (resolution, resolution) in shapes and len(set(shapes)) == len(shapes)
    assert {(height, width) for width, height in shapes} == set(shapes)
    for width, height in shapes:
        assert width % step == height % step == 0 and max(width, height) <= 4 * min(width, height)
    widest = max(width / height for width, height in bucket_shapes(resolution, step, 2.0))
    assert widest <= 2 < max(width / height for width, height in shapes)
    for width, height in shapes:
        assert 0.8 * resolution**2 < width * height <= resolution**2 or step > resolution / 8
    with pytest.raises(ValueError, match="must divide the resolution"):
        bucket_shapes(resolution, step + 1)


def test_batches_are_full_of_one_shape_and_lose_little(folder: Path):
    # red without `sorted`, or with the bucket of the first picture: neighbors would be cut to its shape
    batches = take(data_for(folder), 48)  # three windows
    shapes = {tuple(batch.images.shape[:1:-1]) for batch in batches}
    assert len(shapes) > 3 and shapes <= set(bucket_shapes(RESOLUTION, STEP))
    assert all(len(batch.keys) == 2 for batch in batches)
    kept = []
    for batch in batches:
        height, width = batch.images.shape[2:]
        aspects = [original.width / original.height for original in map(of_key, batch.keys)]
        kept += [min(aspect * height / width, width / height / aspect) for aspect in aspects]
    squares = [min(of_key(key).size) / max(of_key(key).size) for key in keys(batches)]
    assert np.mean(kept) > 0.9 > 0.8 > np.mean(squares)
    epoch = keys(batches)[: PICTURES - 4]
    assert len(set(epoch[:64])) == 64  # of two windows; the third crosses the end of the epoch
    assert [batch.images.shape for batch in batches[:16]] != sorted(batch.images.shape for batch in batches[:16])


def of_key(key: str) -> Image.Image:
    return picture(int(Path(key).stem))


def test_a_picture_is_scaled_once(folder: Path):
    # red if `_cut` takes the pixels that were scaled to the picture's own shape
    shapes, others = bucket_shapes(RESOLUTION, STEP), 0
    for batch in take(data_for(folder), 32):
        shape = tuple(batch.images.shape[:1:-1])
        for key, image in zip(batch.keys, batch.images, strict=True):
            original = of_key(key)
            others += nearest(shapes, original.width / original.height) != shape
            wanted = torch.from_numpy(np.array(cropped(original, *shape))).permute(2, 0, 1) / 255
            torch.testing.assert_close(image, wanted)
    assert others


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used_up", [5, 16, 21])
def test_a_run_resumed_within_a_window_goes_on_exactly(folder: Path, workers: int, used_up: int):
    # red if `done` is not passed over, stays for the next window, or the place is that behind the window
    options = {"num_workers": workers, "random_crop": True, "shuffle_buffer": 3}
    wanted = take(data_for(folder, **options), 40)
    stopped = data_for(folder, **options)
    list(islice(iter(stopped.train_dataloader()), used_up + 2))  # two were read ahead
    used(stopped, used_up)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = data_for(folder, **options)
    resumed.load_state_dict(state)
    used(resumed, used_up)
    got = take(resumed, 40 - used_up)
    assert [batch.keys for batch in got] == [batch.keys for batch in wanted[used_up:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(got, wanted[used_up:], strict=True))


def test_what_is_skipped_is_counted_once(folder: Path, tmp_path: Path):
    # red if a resumed window counts anew what the run that was stopped has counted
    for index in range(40):
        picture(index).save(tmp_path / f"{index:03d}.png")
        (tmp_path / f"{index:03d}.txt").write_text("" if index % 4 == 0 else "text")
    options = {"require_captions": True, "validation_path": str(folder), "batch_size": 1}
    stopped = data_for(tmp_path, **options)
    take(stopped, 3)
    used(stopped, 3)
    state = stopped.state_dict()
    assert stopped.skipped_files.kept == 16 and stopped.skipped_files.skips > 3
    resumed = data_for(tmp_path, **options)
    resumed.load_state_dict(state)
    used(resumed, 3)
    take(resumed, 13)
    assert resumed.skipped_files.read == 0


def test_a_picture_lying_on_its_side_is_upright(tmp_path: Path):
    # red if `upright_size` forgets the orientation: it would be cut to a wide shape
    for index in range(40):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(0).resize((160, 60)).save(tmp_path / f"{index:03d}.jpg", exif=exif)
        with (tmp_path / f"{index:03d}.jpg").open("ab") as file:
            file.write(bytes([index]))  # else they are all alike, and held out
    batch = take(data_for(tmp_path, batch_size=1), 1)[0]
    assert batch.images.shape[2] > batch.images.shape[3]


def test_held_out_pictures_stay_squares(folder: Path):
    assert {batch.images.shape[2:] for batch in data_for(folder).val_dataloader()} == {(RESOLUTION, RESOLUTION)}


def drawing(unit: int, most: int | None) -> SimpleNamespace:
    """A decoder, as far as sizes go."""
    sizes = SimpleNamespace(codec=SimpleNamespace(downsampling=unit), patch_size=1, most_patches=most)
    return SimpleNamespace(check_size=partial(DiffusersDecoder.check_size, sizes))


@pytest.mark.parametrize(
    ("stage", "unit", "most", "message"),
    [
        (DecoderPretrain, 8, None, None),
        (EncoderRL, 8, None, "EncoderRL needs squares"),
        (DecoderPretrain, 32, None, r"step: sides must be multiples of 32, got 40 x 96"),
        (DecoderPretrain, 8, 12, r"step: sides must be multiples of 8, at most 96 px, got 32 x 128"),
    ],
)
def test_stages_and_decoders_that_need_squares_say_so(folder: Path, stage, unit, most, message):
    # red without `latents_suffice`, or without `check_size`
    data, module = data_for(folder), object.__new__(stage)
    torch.nn.Module.__init__(module)
    module.autoencoder = SimpleNamespace(decoder=drawing(unit, most))
    data.trainer.lightning_module = module
    if message is None:
        data.setup("fit")
        return
    with pytest.raises(UsageError, match=message):
        data.setup("fit")
    with pytest.raises(UsageError, match="step must divide the resolution, 64; it is 24"):
        BucketedData(str(folder), RESOLUTION, 24)
    with pytest.raises(UsageError, match="widest must be at least 1"):
        BucketedData(str(folder), RESOLUTION, STEP, widest=0.5)


def test_noise_does_not_depend_on_the_shape_that_other_ranks_have(monkeypatch):
    # red with the noise of the whole batch drawn at once: what is drawn after it, and a rank's rows, would move
    def drawn(rank: int, ranks: int, *shape: int) -> tuple[torch.Tensor, float]:
        monkeypatch.setattr(decoder_pretrain, "ranks", lambda: ranks)
        monkeypatch.setattr(decoder_pretrain, "own_rows", lambda everyone: everyone.chunk(ranks)[rank])
        generator = torch.Generator().manual_seed(0)
        return noise_by_row(torch.empty(shape), generator), torch.rand(1, generator=generator).item()

    (alone, then), (first, _), (second, later) = (
        drawn(0, 1, 4, 3, 2, 6),
        drawn(0, 2, 2, 3, 2, 6),
        drawn(1, 2, 2, 3, 2, 6),
    )
    assert torch.equal(alone, torch.cat([first, second])) and then == later == drawn(1, 2, 2, 3, 4, 3)[1]
