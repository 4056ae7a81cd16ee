"""Files that are complete or absent: checkpoints, and whatever else a run must find whole after a kill.

Why not Lightning's own writer (read in lightning 2.6.6 and fsspec). `lightning.fabric.utilities.cloud_io._atomic_save`
serialises into memory (two more copies of the checkpoint) and writes within an fsspec transaction;
`fsspec.implementations.local.LocalFileOpener` then writes to `tempfile.mkstemp()`, in the system's temporary folder,
and commits by `shutil.move`. Where that folder is another file system (a tmpfs, a local disk beside a network one) the
move is a copy onto the final name: a kill in the middle leaves half a checkpoint where resuming looks for a whole one.
Nothing is flushed to disk before the rename either.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from uae_lightning.files import explained, naming, shared
from uae_lightning.parallel import sharded_checkpoint
from uae_lightning.parallel.checksums import check_zip

PARTIAL, PREVIOUS = ".uae-partial", ".uae-previous"  # no file of the user is called so


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the path it yields; `path` appears, or is replaced, only once that file is whole and on disk.

    The partial file lies in the same folder (a rename is atomic within one file system only) and is named
    `PATH.uae-partial`, which no "*.ckpt" finds. An exception inside removes it; a kill leaves it, and the next write
    overwrites it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    if partial.is_dir():  # left by a killed `replacing_folder`
        remove(partial)
    try:
        with naming(path):
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        shared(partial)
        swap(partial, path) if path.is_dir() else os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, main: bool, barrier: Callable[[], Any]) -> Iterator[Path]:
    """The same for a folder that all ranks write to; `main` is true on the one that makes and renames it.

    A folder that is not empty cannot be replaced in one step: a kill between the two steps leaves the earlier one as
    `PATH.uae-previous`, where `recover` finds it.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    if main:
        remove(partial)
        partial.mkdir(parents=True)
    barrier()
    yield partial
    barrier()
    if main:
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        swap(partial, path)
    barrier()


@contextmanager
def making_folder(target: Path) -> Iterator[Path]:
    """A folder to write to; it becomes `target` when all is on disk, and is removed after an exception.

    A kill leaves it as `TARGET.uae-partial`, which the next call clears.

    Raises:
        ValueError: the disk is full, or nobody may write there.
    """
    partial = target.with_name(target.name + PARTIAL)
    remove(partial)
    try:
        partial.mkdir(parents=True)
        with naming(target):
            yield partial
            for file in filter(Path.is_file, partial.rglob("*")):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                shared(file)
        swap(partial, target)
    except FileNotFoundError:  # of what was to be written into it
        raise
    except OSError as error:
        raise ValueError(f"--to {target} cannot be written: {explained(error) or error}") from error
    finally:
        remove(partial)


def swap(partial: Path, path: Path) -> None:
    """`partial` becomes `path`, which may be a file, a folder or absent."""
    previous = path.with_name(path.name + PREVIOUS)
    remove(previous)
    if path.exists():
        path.rename(previous)
    partial.rename(path)
    remove(previous)


def recover(path: Path) -> None:
    """Undoes a `swap` that was killed half-way: what was at `path` before is there again."""
    previous = path.with_name(path.name + PREVIOUS)
    if previous.exists() and not path.exists():
        previous.rename(path)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints on a local or mounted file system, whole or absent; give it to `trainer.plugins`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files: it takes no storage_options")
        with replacing(path) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """The checkpoint, read with `weights_only=True` whatever is asked: a pickle can run code.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is unfinished, damaged, or holds more than tensors and plain Python values.
        """
        return read_checkpoint(path, map_location=map_location)


def read_checkpoint(
    path: str | Path,
    sharded: nn.Module | None = None,
    map_location: Callable | str | None = "cpu",
) -> dict[str, Any]:
    """A checkpoint of one file or of shards, for a module that is sharded, or (None) for one that is not.

    Raises:
        FileNotFoundError: there is nothing at that place.
        ValueError: it is unfinished, damaged, or holds more than tensors and plain Python values.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: correct --ckpt_path, or start the stage without it")
    if path.suffix == PARTIAL:
        raise ValueError(f"{path} was still being written when its run ended: resume from the .ckpt beside it")
    if path.is_dir():
        return sharded_checkpoint.load_shards(path, sharded)
    checkpoint = read_file(path, map_location)
    return checkpoint if sharded is None else sharded_checkpoint.distribute(checkpoint, sharded)


def read_file(path: Path, map_location: Callable | str | None) -> dict[str, Any]:
    try:
        check_zip(path)
        return torch.load(path, map_location=map_location, weights_only=True)
    except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"cannot read the checkpoint {path}: it is damaged, unfinished, or holds other objects than tensors "
            "and plain values; delete it and resume from another, or start the stage anew"
        ) from error
