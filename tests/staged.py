"""A stage of given parts, in one line."""

from __future__ import annotations

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.stages.common import Stage

OF_THE_AUTOENCODER = ("captioning", "sampling", "condition_on", "negative_prompt")


def staged(kind: type[Stage], *parts, **options) -> Stage:
    """`parts` are encoder, projector and decoder; options of the auto-encoder are told from those of the stage."""
    own = {name: options.pop(name) for name in OF_THE_AUTOENCODER if name in options}
    return kind(AutoEncoder(*parts, **own), **options)
