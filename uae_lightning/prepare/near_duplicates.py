"""Which pictures were seen before: the same bytes, or nearly the same picture."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 32  # pixels of the picture that is hashed
LUMINANCE, CHROMA = 40, 12  # bits from Y, and from each of Cb and Cr: a picture in other colors is another picture
BANDS, BAND_BITS = 4, 16
UNSORTED = 4096  # pictures that are compared one by one before they are sorted into buckets


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of an RGB picture: the signs of its lowest frequencies (DCT) in Y, Cb and Cr, without the mean.

    Frequencies rather than differences of neighbors (dHash): where a picture is flat, neighbors differ by nothing, and
    many pictures of small things on plain ground get one hash.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0).convert("YCbCr")
    pixels = np.asarray(small, dtype=np.float64)
    basis, (down, across) = _basis(), _lowest_frequencies()
    bits = []
    for channel, count in enumerate((LUMINANCE, CHROMA, CHROMA)):
        coefficients = basis @ pixels[..., channel] @ basis.T
        bits.append(coefficients[down, across][:count] > 1)  # 1 is nothing, a 256th of a level, but for rounding
    return int.from_bytes(np.packbits(np.concatenate(bits)).tobytes())


class Match(NamedTuple):
    exact: bool  # the same bytes
    place: int  # of the earlier picture


class SeenPictures:
    """Pictures by hash, 40 bytes each; a look-up touches a few buckets, not all of them.

    Multi-index hashing (Norouzi et al., arXiv 1307.2982): of two hashes that differ in at most d bits, one of four
    bands of 16 bits differs in at most d // 4. A band's pictures are sorted by its value; the last few thousand are
    compared one by one until they are sorted in too.

    Args:
        bits: in which hashes of near-duplicates may differ, 0 to 15; None looks for the same bytes only.
    """

    def __init__(self, bits: int | None) -> None:
        self.bits = bits
        self.count = self.sorted_count = 0
        self.hashes, self.digests, self.places = (np.zeros(UNSORTED, np.uint64) for _ in range(3))
        self._flips = _flips((bits or 0) // BANDS)
        self._orders: list[np.ndarray] = []  # of each band: rows sorted by its value
        self._starts: list[np.ndarray] = []  # of each band: where each value begins in that order

    def add(self, hash_: int, digest: int, place: int) -> None:
        """`hash_`, `digest` and `place` have 64 bits each; `place` is what `find` gives back."""
        if self.count == len(self.hashes):
            for name in ("hashes", "digests", "places"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(self.count // 2, np.uint64)]))
        row, self.count = self.count, self.count + 1
        self.hashes[row], self.digests[row], self.places[row] = hash_, digest, place
        if self.count - self.sorted_count > max(UNSORTED, self.sorted_count // 4):
            self._sort()

    def find(self, hash_: int, digest: int) -> Match | None:
        """The first picture of the same bytes, or else the first that is near."""
        rows = self._candidates(hash_)
        distances = np.bitwise_count(self.hashes[rows] ^ np.uint64(hash_))
        same = rows[(distances == 0) & (self.digests[rows] == np.uint64(digest))]
        if len(same):
            return Match(True, int(self.places[same.min()]))
        near = rows[distances <= self.bits] if self.bits is not None else same
        return Match(False, int(self.places[near.min()])) if len(near) else None

    def _candidates(self, hash_: int) -> np.ndarray:
        rows = [np.arange(self.sorted_count, self.count)]
        for band, (order, starts) in enumerate(zip(self._orders, self._starts, strict=True)):
            for value in (hash_ >> BAND_BITS * band & (1 << BAND_BITS) - 1) ^ self._flips:
                rows.append(order[starts[value] : starts[value + 1]])
        return np.concatenate(rows)

    def _sort(self) -> None:
        self.sorted_count, self._orders, self._starts = self.count, [], []
        for band in range(BANDS):
            values = (self.hashes[: self.count] >> np.uint64(BAND_BITS * band)).astype(np.uint16)
            self._orders.append(np.argsort(values, kind="stable").astype(np.uint32))
            self._starts.append(np.concatenate([[0], np.bincount(values, minlength=1 << BAND_BITS).cumsum()]))


def _flips(radius: int) -> np.ndarray:
    """What turns a band's value into all those that differ from it in at most `radius` bits."""
    sets = itertools.chain.from_iterable(itertools.combinations(range(BAND_BITS), size) for size in range(radius + 1))
    return np.array([sum(1 << bit for bit in bits) for bits in sets])


@functools.cache
def _basis() -> np.ndarray:
    """[SIDE, SIDE] cosines of the DCT-II, not normalised."""
    index = np.arange(SIDE)
    return np.cos(np.pi / SIDE * (index + 0.5) * index[:, None])


@functools.cache
def _lowest_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of coefficients, without the mean: by diagonals as in JPEG, but each from its top right down,
    where JPEG's zigzag turns round at every diagonal."""
    down, across = np.indices((SIDE, SIDE)).reshape(2, -1)
    order = np.lexsort((down, down + across))[1 : LUMINANCE + 1]
    return down[order], across[order]
