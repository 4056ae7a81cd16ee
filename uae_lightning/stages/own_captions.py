"""Which captions a stage draws: the encoder's, or those of the data, which are what people write."""

from __future__ import annotations

from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, Captions


def drawn_from_their_own(batch: Batch, share: float, rank: int) -> list[bool]:
    """Which of a rank's pictures: evenly spread over the global batch, whatever the number of ranks. Prompts without
    pictures are drawn as they are."""
    count = len(batch.keys)
    if not batch.has_images:
        return [True] * count
    places = range(rank * count, (rank + 1) * count)
    return [int((place + 1) * share) > int(place * share) for place in places]


def captions_to_draw(stage: Stage, batch: Batch, own: list[bool]) -> Captions:
    """One of each picture: that of the data where it is drawn from its own, else one that the encoder writes."""
    others, seed = [row for row, given in enumerate(own) if not given], stage.step_seed(0, stage.global_rank)
    if len(others) == len(own):
        return stage.autoencoder.write(batch.images, 1, seed)
    texts = batch.given_captions(type(stage).__name__, "set model.init_args.own_captions to 0")
    written = iter(stage.autoencoder.write(batch.images[others], 1, seed).texts if others else ())
    drawn = [text if given else next(written) for text, given in zip(texts, own, strict=True)]
    return stage.autoencoder.reader.tokenize(drawn)
