"""Checkpoints that are complete or absent.

Why not Lightning's own writer (read in lightning 2.6.6 and fsspec). `lightning.fabric.utilities.cloud_io._atomic_save`
serialises into memory (two more copies of the checkpoint) and writes within an fsspec transaction;
`fsspec.implementations.local.LocalFileOpener` then writes to `tempfile.mkstemp()`, in the system's temporary folder,
and commits by `shutil.move`. Where that folder is another file system (a tmpfs, a local disk beside a network one) the
move is a copy onto the final name: a kill in the middle leaves half a checkpoint where resuming looks for a whole one.
Nothing is flushed to disk before the rename either.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from uae_lightning.files import PARTIAL, replacing
from uae_lightning.parallel import sharded_checkpoint
from uae_lightning.parallel.checksums import check_zip


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
