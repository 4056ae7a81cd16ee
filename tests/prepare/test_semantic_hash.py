"""Codes of what pictures show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from caption_sets import caption_data, rows, save_scenes, scene
from PIL import Image, ImageChops

from uae_lightning.commands import caption_data as command
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.prepare.caption_reading import Reading
from uae_lightning.prepare.near_duplicates import perceptual_hash
from uae_lightning.prepare.semantic_hash import BITS, FILE, SemanticHash, embedded, itq, nearest
from uae_lightning.rewards.pixel_similarity import Pixels
from uae_lightning.scenes.detector_features import DetectorFeatures
from uae_lightning.usage import UsageError

COUNT = 120


@pytest.fixture(scope="module")
def judge() -> DetectorFeatures:
    return DetectorFeatures()


@pytest.fixture(scope="module")
def semantic(judge) -> SemanticHash:
    return SemanticHash.fit(judge, embedded(judge, [scene(index) for index in range(1000, 1300)]))


def moved(picture: Image.Image) -> Image.Image:
    return ImageChops.offset(picture, 2, 1)


def test_the_rotation_brings_components_to_the_corners():
    # red without the loop, with `right @ left`, or with the smallest components
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 3, 100)
    centered = torch.randn(500, 100, generator=generator) * spread
    projection = itq(centered)
    torch.testing.assert_close(projection.T @ projection, torch.eye(BITS), atol=1e-5, rtol=0)
    assert (centered @ projection).var() > 0.99 * spread.square()[-BITS:].mean()
    turned, _ = torch.linalg.qr(torch.randn(BITS, BITS, generator=generator))
    errors = [(part - part.sign()).square().mean() for part in (centered @ projection, centered @ projection @ turned)]
    assert errors[0] < 0.9 * errors[1]


def test_a_moved_picture_keeps_its_code_and_another_one_has_another(semantic):
    # red if the mean is not taken off, or the codes are those of one picture
    pictures = [scene(index) for index in range(COUNT)]
    codes, after = (np.array([semantic(p) for p in of], np.uint64) for of in (pictures, map(moved, pictures)))
    same = np.bitwise_count(codes ^ after)
    others = np.bitwise_count(codes[:, None] ^ codes)[np.triu_indices(COUNT, 1)]
    assert (same <= 6).mean() > 0.6 and (others <= 6).mean() < 0.01
    frequencies = [(perceptual_hash(p) ^ perceptual_hash(moved(p))).bit_count() <= 3 for p in pictures]
    assert np.mean(frequencies) < (same <= 6).mean() - 0.2  # those that look at pixels do not


def test_bits_are_spread_evenly(semantic, judge):
    # red if the components are packed without the rotation: multi-index hashing counts on it
    codes = semantic.codes(embedded(judge, [scene(index) for index in range(COUNT)]))
    ones = [(codes >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(BITS)]
    assert 0.25 < min(ones) and max(ones) < 0.75


def test_the_nearest_codes_are_the_hard_negatives():
    # red if a picture is its own negative, or the farthest come first
    codes = np.array([0b0000, 0b0001, 0b0111, 0b1111], np.uint64)
    assert nearest(codes, 2).tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]


def test_too_few_pictures_are_refused():
    # red without the check: the code would have bits that mean nothing
    with pytest.raises(ValueError, match="more than 64 pictures .*--duplicates dct"):
        itq(torch.randn(64, 100))


def test_a_set_is_fitted_once_and_drops_what_shows_the_same(tmp_path, judge, monkeypatch):
    # red if the hash is fitted again, is not kept, or `--duplicates` is not listened to
    source = save_scenes(tmp_path / "scenes", 80)
    moved(scene(3)).save(source / "080.png")
    judge_yaml = tmp_path / "judge.yaml"
    judge_yaml.write_text("class_path: uae_lightning.scenes.detector_features.DetectorFeatures")
    words = f"--from {source} --to {tmp_path} --model m --duplicates semantic --duplicate-judge {judge_yaml}".split()
    options = command.parse(words)
    assert options.duplicate_bits == 6
    folder = tmp_path / "set"
    folder.mkdir()
    hash_of = command.hash_of(options, Reading(open_source(str(source), Columns(caption="")), 1, 1), folder)
    kept = (folder / FILE).read_bytes()
    counts = caption_data(source, folder, duplicate_bits=6, load_hash=lambda: hash_of).run()
    assert counts.dropped["near-duplicate"] >= 1
    dropped = [(row.get("of"), row["reason"]) for row in rows(folder / "dropped.jsonl")]
    assert ("000000_000003", "near-duplicate") in dropped
    again = command.hash_of(options, None, folder)  # nothing is read
    assert (folder / FILE).read_bytes() == kept and again(scene(5)) == hash_of(scene(5))


@pytest.mark.parametrize(
    ("words", "bits"), [([], 3), (["--duplicates", "semantic"], 6), (["--duplicate-bits", "off"], None)]
)
def test_bits_that_may_differ(words, bits):
    # red if the default of one kind is that of the other
    assert command.parse(["--from", "a", "--to", "b", "--model", "m", *words]).duplicate_bits == bits


def test_a_judge_without_a_semantic_hash_is_refused():
    # red if the option is silently left unused
    with pytest.raises(UsageError, match="--duplicate-judge is the network of --duplicates semantic"):
        command.parse(["--from", "a", "--to", "b", "--model", "m", "--duplicate-judge", "c.yaml"])


def test_pictures_of_any_size_are_embedded():
    # red if pictures are stacked before they are embedded
    assert len(embedded(Pixels(), [scene(0), scene(1)])) == 2
