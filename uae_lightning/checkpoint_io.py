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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

PARTIAL = ".partial"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the path it yields; `path` appears, or is replaced, only once that file is whole and on disk.

    The partial file lies in the same folder (a rename is atomic within one file system only) and is named
    `PATH.partial`, which no "*.ckpt" finds. An exception inside removes it; a kill leaves it, and the next write
    overwrites it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}: correct --ckpt_path, or start the stage without it")
        if path.suffix == PARTIAL:
            raise ValueError(f"{path} was still being written when its run ended: resume from the .ckpt beside it")
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"cannot read the checkpoint {path}: it is damaged, unfinished, or holds other objects than tensors "
                "and plain values; delete it and resume from another, or start the stage anew"
            ) from error
