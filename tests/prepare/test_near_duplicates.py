import io

import numpy as np
import pytest
from caption_sets import scene
from PIL import Image

from uae_lightning.prepare import near_duplicates
from uae_lightning.prepare.near_duplicates import Match, SeenPictures, perceptual_hash


def distance(a: Image.Image, b: Image.Image) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


def as_jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return Image.open(file).convert("RGB")


def test_the_hash_survives_what_happens_to_files_and_tells_pictures_apart():
    # red if luminance is hashed three times (`channel` becomes 0), or the highest frequencies are taken
    pairs = [Image.blend(scene(2 * index), scene(2 * index + 1), 0.5) for index in range(100)]  # richer than one
    scenes = [picture.resize((256, 256), Image.Resampling.BICUBIC) for picture in pairs]
    hashes = np.array([perceptual_hash(picture) for picture in scenes], np.uint64)
    between = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(100, 1)]
    assert between.mean() > 20 and (between <= 3).mean() < 0.001
    darker = [Image.fromarray((np.asarray(picture) * 0.9).astype(np.uint8)) for picture in scenes]
    for changed in ([picture.resize((97, 97)) for picture in scenes], [as_jpeg(p) for p in scenes], darker):
        near = [distance(a, b) <= 3 for a, b in zip(scenes, changed, strict=True)]
        assert np.mean(near) > 0.9
    red, blue = Image.new("RGB", (64, 64), "gray"), Image.new("RGB", (64, 64), "gray")
    red.paste((200, 90, 90), (8, 8, 24, 40))
    blue.paste((90, 90, 246), (8, 8, 24, 40))  # as light as the red
    assert distance(red, blue) > 3


def test_a_plain_picture_has_no_frequencies():
    # red if > 1 becomes > 0: rounding decides
    assert {perceptual_hash(Image.new("RGB", (70, 50), color)) for color in ("white", "navy", "#123456")} == {0}


@pytest.mark.parametrize("bits", [None, 0, 3, 4, 9])
def test_look_ups_find_what_comparing_all_pictures_finds(bits, monkeypatch):
    # red if // BANDS becomes // 5, the last rows are not compared, or max replaces min
    monkeypatch.setattr(near_duplicates, "UNSORTED", 64)
    rng = np.random.default_rng(0)
    seen, hashes, digests = SeenPictures(bits), [], []
    found = 0
    for place in range(700):
        hash_, digest = int(rng.integers(2**64, dtype=np.uint64)), int(rng.integers(2**64, dtype=np.uint64))
        if place and rng.random() < 0.6:  # a picture of before, somewhat changed or not at all
            earlier = int(rng.integers(len(hashes)))
            flips = rng.choice(64, rng.integers(0, 13), replace=False)
            hash_ = hashes[earlier] ^ sum(1 << int(bit) for bit in flips)
            digest = digest if len(flips) or rng.random() < 0.5 else digests[earlier]
        same = [i for i, (h, d) in enumerate(zip(hashes, digests, strict=True)) if (h, d) == (hash_, digest)]
        near = [i for i, h in enumerate(hashes) if bits is not None and (h ^ hash_).bit_count() <= bits]
        expected = Match(True, 7 * same[0]) if same else Match(False, 7 * near[0]) if near else None
        assert seen.find(hash_, digest) == expected
        found += expected is not None
        seen.add(hash_, digest, 7 * place)
        hashes.append(hash_)
        digests.append(digest)
    assert found > 10 and seen.sorted_count > 500


def test_a_look_up_among_many_touches_few():
    # red if the candidates are all rows
    seen = SeenPictures(3)
    hashes = np.random.default_rng(0).integers(2**64, size=200_000, dtype=np.uint64)
    seen.hashes, seen.digests, seen.places = hashes, hashes, np.arange(len(hashes), dtype=np.uint64)
    seen.count = len(hashes)
    seen._sort()
    assert seen.find(int(hashes[77]), 0) == Match(False, 77)
    assert len(seen._candidates(int(hashes[77]))) < 100
    held = sum(array.nbytes for array in (seen.hashes, seen.digests, seen.places, *seen._orders))
    assert held == 40 * len(hashes)
