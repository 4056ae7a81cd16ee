"""64 bits of what a picture shows: the embedding of a frozen network, rotated so that its signs say most.

The hash of `near_duplicates` sees frequencies: a picture moved by two pixels is another one, two scenes on one ground
are nearly the same. Codes of an embedding ask a network instead.

Iterative quantization (ITQ, Gong et al., IEEE TPAMI 35(12), 2013): the first BITS principal components of the
embeddings, then the rotation for which they lie closest to the corners of a cube. Each step has a closed form and
nothing is trained by gradients. The rotation also spreads the variance over the bits, which multi-index hashing
(`near_duplicates.SeenPictures`) counts on.

N pictures   E width of the embedding
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from uae_lightning.data.images import BadFile
from uae_lightning.files import replacing
from uae_lightning.prepare.caption_reading import Reading
from uae_lightning.prepare.pictures import prepare
from uae_lightning.rewards.vision_features import EmbeddingSimilarity

BITS = 64
FITTED_ON = 4096  # pictures of a source, the first ones
FILE = "semantic_hash.safetensors"  # in the folder of a set
ITERATIONS = 50  # of ITQ; it stands still long before


class SemanticHash:
    """Codes of pictures by a judge.

    Args:
        judge: whose embedding is hashed; None is enough for embeddings.
        mean: [E] of the embeddings it was fitted on.
        projection: [E, BITS]; the sign of each column is a bit.
    """

    def __init__(self, judge: EmbeddingSimilarity | None, mean: Tensor, projection: Tensor) -> None:
        self.judge, self.mean, self.projection = judge, mean, projection

    @classmethod
    def fit(cls, judge: EmbeddingSimilarity | None, embeddings: Tensor) -> SemanticHash:
        """From embeddings [N, E] of pictures like those that are to be hashed.

        Raises:
            ValueError: they are too few, or too narrow.
        """
        mean = embeddings.mean(0)
        return cls(judge, mean, itq(embeddings - mean))

    @classmethod
    def load(cls, judge: EmbeddingSimilarity, file: Path) -> SemanticHash:
        """What `save` wrote; the judge must be the one it was fitted with."""
        try:
            state = load_file(file)
            return cls(judge, state["mean"], state["projection"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({error}): put it back, or start again in another --to") from error

    def save(self, file: Path) -> None:
        with replacing(file) as partial:
            save_file({"mean": self.mean, "projection": self.projection.contiguous()}, partial)

    def codes(self, embeddings: Tensor) -> np.ndarray:
        """[N, E] -> [N] uint64."""
        signs = (embeddings - self.mean) @ self.projection > 0
        return packed(signs)

    def __call__(self, picture: Image.Image) -> int:
        """The code of one RGB picture."""
        assert self.judge is not None  # who hashes embeddings has them
        return int(self.codes(embedded(self.judge, [picture]))[0])


def itq(centered: Tensor) -> Tensor:
    """The projection [E, BITS] of centered embeddings [N, E].

    Raises:
        ValueError: they do not fill BITS dimensions.
    """
    count, width = centered.shape
    if min(count - 1, width) < BITS:
        raise ValueError(
            f"a code of {BITS} bits needs more than {BITS} pictures to be fitted on and an embedding of at least "
            f"{BITS} numbers; there are {count} pictures of {width}: give more pictures or another judge, or compare "
            "frequencies instead (--duplicates dct)"
        )
    _, directions = torch.linalg.eigh(centered.double().T @ centered.double())  # eigenvalues ascend
    directions = directions[:, -BITS:]
    components = centered.double() @ directions
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(BITS, BITS, generator=generator, dtype=torch.double))
    for _ in range(ITERATIONS):
        corners = (components @ rotation).sign()
        left, _, right = torch.linalg.svd(components.T @ corners)  # orthogonal Procrustes
        rotation = left @ right
    return (directions @ rotation).to(centered.dtype)


def first_embeddings(judge: EmbeddingSimilarity, reading: Reading, max_pixels: int) -> Tensor:
    """[N, E] of the first usable pictures of a source."""
    found = itertools.islice(usable(reading, max_pixels), FITTED_ON)
    return embedded(judge, tqdm(found, desc="fitting the semantic hash", unit="picture", leave=False))


def usable(reading: Reading, max_pixels: int) -> Iterator[Image.Image]:
    for _, sample in reading.samples((0, 0)):
        try:
            yield prepare(sample, max_pixels, lambda picture: 0).image
        except BadFile:
            continue


@torch.no_grad()
def embedded(judge: EmbeddingSimilarity, pictures: Iterable[Image.Image]) -> Tensor:
    """[N, E] float32 on the CPU, of RGB pictures of any sizes."""
    device = next(iter([*judge.parameters(), *judge.buffers()]), torch.empty(0)).device
    return torch.cat([judge.embed(as_tensor(picture).to(device)).float().cpu() for picture in pictures])


def as_tensor(picture: Image.Image) -> Tensor:
    """RGB -> [1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def packed(signs: Tensor) -> np.ndarray:
    """[N, BITS] bool -> [N] uint64, the first bit in front."""
    rows = np.packbits(signs.numpy(), axis=1)
    return np.ascontiguousarray(rows).view(">u8")[:, 0].astype(np.uint64)


def nearest(codes: np.ndarray, count: int) -> np.ndarray:
    """[N, count] for each code the places of the others that differ from it in the fewest bits, the nearest first: hard
    negatives."""
    distances = np.bitwise_count(codes[:, None] ^ codes[None]).astype(np.int64)
    np.fill_diagonal(distances, BITS + 1)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]
