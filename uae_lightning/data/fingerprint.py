"""What latents and caption states depend on, in words that can be compared.

The prompt for captions, `max_pixels`, the projector and the transformer have no part in them: a cache outlives changes
of those.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from uae_lightning.autoencoder import AutoEncoder

Fingerprint = dict[str, str]  # name -> value

PROBE = 'Two red cats (left), 17 dogs; a sign: "caf\u00e9".'


def fingerprint(model: AutoEncoder, precision: str) -> Fingerprint:
    """Of what the auto-encoder would compute; without what only an encoder could tell where it has none.

    Args:
        precision: of the trainer, such as "32-true" or "bf16-mixed".
    """
    decoder, codec = model.decoder, model.decoder.codec
    made_by = {
        "precision": precision,
        "VAE": type(codec).__name__,
        "VAE weights": digest_of(codec),
        "VAE dtype": dtypes(codec),
        "latent shape (resolution)": " x ".join(map(str, decoder.latent_shape)),
    }
    return made_by | codec.fingerprint() | (of_encoder(model) if model.encoder else {})


def of_encoder(model: AutoEncoder) -> Fingerprint:
    encoder, adapters = model.encoder, model.condition_on == "adapted"
    return encoder.fingerprint() | {
        "encoder": type(encoder).__name__,
        "encoder weights": digest_of(encoder, adapters),
        "encoder dtype and quantization": dtypes(encoder, adapters),
        "tokenizer": str(encoder.tokenize([PROBE]).tokens[0].tolist()),
    }


def differences(cache: Fingerprint, here: Fingerprint) -> list[str]:
    """One phrase for each value that differs, of those that both know."""
    return [_phrase(name, value, here[name]) for name, value in cache.items() if value != here.get(name, value)]


def _phrase(name: str, cache: str, here: str) -> str:
    """Of long values, what comes where they part."""
    start = max(0, len(os.path.commonprefix([cache, here])) - 20) if max(len(cache), len(here)) > 60 else 0
    old, new = (f"{'...' if start else ''}{value[start : start + 60]}" for value in (cache, here))
    return f"{name} ({old!r} in the cache, {new!r} here)"


def digest_of(module: nn.Module, adapters: bool = True) -> str:
    """Hash of all weights: names, dtypes, shapes and bytes; with `adapters` False of those without LoRA."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in _state(module, adapters):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def dtypes(module: nn.Module, adapters: bool = True) -> str:
    """Those of the weights, such as "bfloat16" or, quantised, "bfloat16, float32, uint8"."""
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for _, tensor in _state(module, adapters)}))


def _state(module: nn.Module, adapters: bool) -> list[tuple[str, torch.Tensor]]:
    return sorted((name, tensor) for name, tensor in module.state_dict().items() if adapters or "lora_" not in name)
