"""The decoder in one file of llama.cpp's format GGUF, its linear layers in a few bits a weight.

`gguf` (an extra) is that project's own package: it knows the format and quantises with NumPy. Tensors keep the names of
diffusers, which `from_single_file` takes of every family; ComfyUI wants those of each model's authors, which these are
not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae_lightning import __version__
from uae_lightning.usage import UsageError

QUANTIZATION_VERSION = 2  # of ggml; 2 since 2023


def gguf_module() -> Any:
    """Raises UsageError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UsageError("--gguf needs the package gguf: pip install 'uae-lightning[gguf]'") from error
    return gguf


def write_gguf(file: Path, model: nn.Module, kind: str, family: str) -> None:
    """All weights of a model of diffusers, one tensor at a time.

    Weights of linear layers whose rows are whole blocks of 32 numbers are of `kind`; vectors are float32, as are
    numbers too large for float16, and all others float16.
    """
    gguf = gguf_module()
    linear = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    state = model.state_dict()  # views, no copies
    kinds = {name: kind_of(gguf, tensor, kind if name in linear else None) for name, tensor in state.items()}
    writer = gguf.GGUFWriter(file, family)
    writer.add_name(f"{type(model).__name__}, uae-lightning {__version__}")
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    for name, tensor in state.items():
        per_block, bytes_of_block = gguf.GGML_QUANT_SIZES[kinds[name]]
        size = tensor.numel() // per_block * bytes_of_block
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[name]) if per_block > 1 else tensor.shape
        dtype = torch.empty(0, dtype=torch.uint8 if per_block > 1 else torch.float32).numpy().dtype
        writer.add_tensor_info(name, shape, dtype, size, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in state.items():
        writer.write_tensor_data(gguf.quantize(tensor.detach().cpu().float().contiguous().numpy(), kinds[name]))
    writer.close()


def kind_of(gguf: Any, tensor: Tensor, kind: str | None) -> Any:
    """Of one tensor; `kind` where it may be quantised."""
    kinds = gguf.GGMLQuantizationType
    if kind and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kinds[kind]][0] == 0:
        return kinds[kind]
    fits = tensor.dim() > 1 and tensor.abs().max() <= torch.finfo(torch.float16).max
    return kinds.F16 if fits else kinds.F32
