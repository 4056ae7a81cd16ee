"""A checkpoint as a folder to which every rank writes its shards, readable by any number of ranks.

    last.ckpt/
      shard-00000-of-00002.safetensors    rank 0's rows of every sharded tensor, named by its place in the checkpoint
      shard-00001-of-00002.safetensors    rank 1's
      rest.pt                             Lightning's checkpoint without them

Every shard has the CRC-32 of its tensors in its metadata, rest.pt is a zip file with such sums: both are checked.

Why not torch.distributed.checkpoint, which Lightning's ModelParallelStrategy writes (torch 2.13): its index is a
pickle, and unpickling can run code; its names come from walking the model by attributes, which fails at the extra
entries that bitsandbytes puts into a state dict.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from uae_lightning.parallel.checksums import Damaged, check_zip, checksum
from uae_lightning.parallel.collectives import rank, ranks

REST = "rest.pt"


def save_shards(checkpoint: dict[str, Any], folder: Path, rank: int, ranks: int) -> None:
    """Write this rank's part of a checkpoint to a folder that exists and is empty."""
    shards = {place: tensor.to_local().contiguous().cpu() for place, tensor in sharded_tensors(checkpoint)}
    sums = {place: checksum(tensor) for place, tensor in shards.items()}
    save_file(shards, folder / f"shard-{rank:05d}-of-{ranks:05d}.safetensors", metadata=sums)
    if rank == 0:
        torch.save(without_sharded(checkpoint), folder / REST)


def load_shards(folder: Path, module: nn.Module | None = None) -> dict[str, Any]:
    """The checkpoint in a folder; tensors that belong to a sharded parameter of `module` are sharded as it is.

    Raises:
        ValueError: a file is missing, damaged, or holds more than tensors and plain Python values.
    """
    try:
        check_zip(folder / REST)
        checkpoint = torch.load(folder / REST, map_location="cpu", weights_only=True)
        files = [safe_open(path, framework="pt") for path in sorted(folder.glob("shard-*.safetensors"))]
        if not files or not sorted(folder.glob("shard-*"))[-1].name.endswith(f"-of-{len(files):05d}.safetensors"):
            raise FileNotFoundError(f"{len(files)} shards")
        check_shards(files)
    except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"cannot read the checkpoint {folder}: a shard is missing, or it is damaged; delete it and resume from "
            "another, or start the stage anew"
        ) from error
    owner = Owners(module)
    for place in files[0].keys():  # noqa: SIM118  safe_open is no dict
        path = json.loads(place)
        put(checkpoint, path, read(files, place, owner.of(path)))
    return checkpoint


def check_shards(files: list) -> None:
    """Names in all files, contents in this rank's share of them: together the ranks look at every byte once.

    Raises:
        Damaged: a tensor is not what was written.
    """
    for number, file in enumerate(files):
        sums, places = file.metadata(), file.keys()
        if sums.keys() != set(places):
            raise Damaged(f"shard {number} names other tensors than its checksums")
        for place in places if number % ranks() == rank() else ():
            if checksum(file.get_tensor(place)) != sums[place]:
                raise Damaged(f"{place} in shard {number} differs from its checksum")


def distribute(checkpoint: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """A checkpoint of whole tensors (one process, or DDP) for a sharded module."""
    owner = Owners(module)
    for path, tensor in list(tensors(checkpoint)):
        parameter = owner.of(path)
        if parameter is not None and tensor.shape == parameter.shape:
            first, count = own_part(parameter)
            # a copy: a DTensor around a slice has an offset, and copy.deepcopy takes it for one with memory of its own
            put(checkpoint, path, like(parameter, tensor[first : first + count].clone()))
    return checkpoint


# ------------------------------------------------------------------------------------------------ places and owners


def tensors(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """(path, tensor) of all tensors in nested dicts and lists; a path is the keys and indices on the way."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(child, (*path, key))


def sharded_tensors(checkpoint: dict[str, Any]) -> Iterator[tuple[str, DTensor]]:
    """(place, tensor): the place is the path as JSON, so that 0 and "0" differ."""
    for path, tensor in tensors(checkpoint):
        if isinstance(tensor, DTensor):
            yield json.dumps(path), tensor


def without_sharded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_sharded(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_sharded(child) for child in value]
    return None if isinstance(value, DTensor) else value


def put(checkpoint: Any, path: list | tuple, tensor: Tensor) -> None:
    for key in path[:-1]:
        checkpoint = checkpoint[key]
    checkpoint[path[-1]] = tensor


class Owners:
    """Which sharded parameter a tensor of a checkpoint belongs to: by name, or, in an optimiser, by number."""

    def __init__(self, module: nn.Module | None) -> None:
        named = dict(module.named_parameters()) if module is not None else {}
        self.trained = [parameter for parameter in named.values() if parameter.requires_grad]  # Stage gives it these
        self.named = {name: parameter for name, parameter in named.items() if isinstance(parameter, DTensor)}

    def of(self, path: list | tuple) -> DTensor | None:
        if path[0] == "optimizer_states":
            number = path[3] if len(path) > 3 and path[2] == "state" else None
            found = self.trained[number] if number is not None and number < len(self.trained) else None
            return found if isinstance(found, DTensor) else None
        return self.named.get(path[-1])


# ------------------------------------------------------------------------------------------------ rows


def own_part(parameter: DTensor) -> tuple[int, int]:
    """First row and number of rows that this rank holds of a parameter sharded over its first dimension."""
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0], shape[0]


def like(parameter: DTensor, local: Tensor) -> DTensor:
    return DTensor.from_local(
        local.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def read(files: list, place: str, parameter: DTensor | None) -> Tensor:
    """A tensor from the rows that each file has of it: the rows of this rank where a sharded parameter owns it."""
    if parameter is None:
        return rows(files, place, 0, None)
    return like(parameter, rows(files, place, *own_part(parameter)))


def rows(files: list, place: str, first: int, count: int | None) -> Tensor:
    """`count` rows (None: all) from row `first` on, put together from the shards they lie in."""
    pieces, begin = [], 0
    for shard in (file.get_slice(place) for file in files):
        size = shard.get_shape()[0]
        start = max(first - begin, 0)
        stop = size if count is None else min(first + count - begin, size)
        pieces.append(shard[min(start, size) : max(stop, min(start, size))])
        begin += size
    return torch.cat(pieces)
