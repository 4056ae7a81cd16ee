"""40 pictures as ImageTextData reads them, and ImageTextData as a trainer sees it."""

import io
import tarfile
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from uae_lightning.data.image_text import ImageTextData
from uae_lightning.scenes.scene import render, sample_scene
from uae_lightning.types import Batch

PICTURES = 40


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(sample_scene("train", 0, index))).save(file, "PNG")
    return file.getvalue()


def name(index: int) -> str:
    return f"{'deep/er' if index % 3 else 'flat'}/{index:03d}.png"


def write_folder(folder: Path) -> Path:
    """40 pictures with captions."""
    for index in range(PICTURES):
        path = folder / name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))
        path.with_suffix(".txt").write_text(f"picture {index}\n")
    return folder


def write_shards(folder: Path, target: Path) -> Path:
    """The same pictures in 5 shards of 8."""
    for shard in range(5):
        with tarfile.open(target / f"{shard:02d}.tar", "w") as tar:
            for index in range(8 * shard, 8 * shard + 8):
                for suffix in (".png", ".txt"):
                    tar.add((folder / name(index)).with_suffix(suffix), f"{index:03d}{suffix}")
    return target


def data_for(
    path: Path | str, *, rank: int = 0, world: int = 1, kind: type[ImageTextData] = ImageTextData, **options
) -> ImageTextData:
    """On a rank, as the trainer sees it; `used` below is what the trainer has used up."""
    options = {"resolution": 8, "batch_size": 2, "validation_pictures": 4, "num_workers": 0} | options
    data = kind(str(path), **options)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    root = options.get("validation_path") or path
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        default_root_dir=f"{root}.out",
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )
    return data


def used(data: ImageTextData, batches: int) -> None:
    data.trainer.fit_loop.epoch_loop.batch_progress.total.processed = batches


def numbers(batches: list[Batch]) -> list[int]:
    """Which pictures: the number in the file's name."""
    return [int(Path(key).name[:3]) for batch in batches for key in batch.keys]


def take(data: ImageTextData, batches: int) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), batches))


def held_out(data: ImageTextData) -> list[int]:
    return numbers(list(data.val_dataloader()))


def everything(data: ImageTextData) -> list[int]:
    return sorted(set(range(PICTURES)) - set(held_out(data)))
