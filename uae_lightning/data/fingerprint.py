"""What latents and caption states depend on, in words that can be compared.

The prompt for captions, `max_pixels`, the projector and the transformer have no part in them: a cache outlives changes
of those.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uae_lightning.autoencoder import AutoEncoder

Fingerprint = dict[str, str]  # name -> value


def fingerprint(model: AutoEncoder, precision: str) -> Fingerprint:
    """Of what the auto-encoder would compute; without what only an encoder could tell where it has none.

    Args:
        precision: of the trainer, such as "32-true" or "bf16-mixed".
    """
    here = {"precision": precision, "latent shape (resolution)": " x ".join(map(str, model.decoder.latent_shape))}
    encoder = model.encoder.fingerprint(adapters=model.condition_on == "adapted") if model.encoder else {}
    return here | model.decoder.codec.fingerprint() | encoder


def differences(cache: Fingerprint, here: Fingerprint) -> list[str]:
    """One phrase for each value that differs, of those that both know."""
    return [_phrase(name, value, here[name]) for name, value in cache.items() if value != here.get(name, value)]


def _phrase(name: str, cache: str, here: str) -> str:
    """Of long values, what comes where they part."""
    start = max(0, len(os.path.commonprefix([cache, here])) - 20) if max(len(cache), len(here)) > 60 else 0
    old, new = (f"{'...' if start else ''}{value[start : start + 60]}" for value in (cache, here))
    return f"{name} ({old!r} in the cache, {new!r} here)"
