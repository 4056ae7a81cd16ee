"""safetensors files written one tensor at a time: a model that is saved takes no second copy of itself in memory.

The format (github.com/huggingface/safetensors): 8 bytes with the length of the header, little endian; the header in
JSON, name -> dtype, shape, and where its bytes begin and end; the bytes of all tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from uae_lightning.files import check_room, naming

SHARD = 5 * 10**9  # bytes of a file at most, but for a tensor that is larger alone
CHUNK = 2**24  # bytes that are written, and hashed, at a time
KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_shards(
    folder: Path, stem: str, shapes: Mapping[str, Tensor], tensor: Callable[[str], Tensor], shard: int = SHARD
) -> dict[Path, str]:
    """Tensors as transformers and diffusers lay them out: `STEM.safetensors`, or several such files and their index.

    Args:
        shapes: tensors without data (on the meta device) that say how each will be.
        tensor: gives the one of that name; it is asked once for each, and what it gave is let go.
        shard: bytes of a file at most.

    Returns:
        The SHA-256 of each file, for `seal`.

    Raises:
        ValueError: the disk has no room for them. Nothing is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, sum(one.nbytes for one in shapes.values()), f"the weights in {folder}")
    pattern = stem + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(dict(shapes), filename_pattern=pattern, max_shard_size=shard)
    sums = {}
    for name, held in split.filename_to_tensors.items():
        sums[folder / name] = write_tensors(folder / name, {one: shapes[one] for one in held}, tensor)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return sums


def write_tensors(file: Path, shapes: Mapping[str, Tensor], tensor: Callable[[str], Tensor]) -> str:
    """One file of these tensors; returns its SHA-256. The arguments are those of `write_shards`."""
    names = sorted(shapes, key=lambda name: (-shapes[name].element_size(), name))  # numbers lie at multiples of a size
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + shapes[name].nbytes
        header[name] = {
            "dtype": KINDS[shapes[name].dtype],
            "shape": [*shapes[name].shape],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hashed = hashlib.sha256()
    with naming(file), file.open("wb") as opened:
        for piece in (len(text).to_bytes(8, "little"), text):
            opened.write(piece)
            hashed.update(piece)
        for name in names:
            for piece in pieces(tensor(name), shapes[name]):
                opened.write(piece)
                hashed.update(piece)
    return hashed.hexdigest()


def pieces(tensor: Tensor, promised: Tensor) -> list[memoryview]:
    """The bytes of a tensor; raises RuntimeError where it is not as the header promises."""
    if (tensor.dtype, tensor.shape) != (promised.dtype, promised.shape):
        raise RuntimeError(f"a tensor is {tensor.dtype} {[*tensor.shape]}, not {promised.dtype} {[*promised.shape]}")
    data = memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    """Of the tensors in the safetensors files of a folder."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        found |= {one["dtype"] for name, one in header.items() if name != "__metadata__"}
    return {dtype for dtype, name in KINDS.items() if name in found}
