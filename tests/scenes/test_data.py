import json
from collections import Counter
from itertools import islice, pairwise
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from uae_lightning.scenes.captions import COUNTS, SINGULARS
from uae_lightning.scenes.data import ScenesData, caption_weights
from uae_lightning.scenes.prompts import is_held_out
from uae_lightning.scenes.scene import CLASSES, IMAGE_SIZE
from uae_lightning.usage import UsageError


def keys(data: ScenesData, batches: int) -> list[list[str]]:
    return [batch.keys for batch in islice(iter(data.train_dataloader()), batches)]


def on_rank(rank: int, world: int) -> ScenesData:
    data = ScenesData(batch_size=2)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def test_ranks_share_the_stream_without_overlap():
    # red if `rank` or `world` is left out of the first index
    alone = [key for batch in keys(ScenesData(batch_size=4), 3) for key in batch]
    both = zip(keys(on_rank(0, 2), 3), keys(on_rank(1, 2), 3), strict=True)
    assert alone == [key for pair in both for batch in pair for key in batch]


def test_a_restored_stream_goes_on_where_it_stopped():
    # red if `first_batch` is ignored
    data = ScenesData(batch_size=2)
    wanted = keys(data, 5)[3:]
    data.load_state_dict({"batches": 3})
    assert keys(data, 2) == wanted


def test_held_out_pictures_are_always_the_same_and_never_trained_on():
    # red if the held-out set takes the split "train"
    data = ScenesData(batch_size=4, validation_pictures=5, validation_batch_size=3)
    first, again = ([batch for batch in data.val_dataloader()] for _ in range(2))
    assert [len(batch.keys) for batch in first] == [3, 2]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    trained = {key for batch in keys(data, 20) for key in batch}
    assert not trained & {key for batch in first for key in batch.keys}


def test_caption_level_is_that_of_the_training_captions():
    # red if `level` is not handed on
    batch = next(iter(ScenesData(batch_size=8, caption_level="tag").train_dataloader()))
    assert all(len(caption.split()) == 2 for caption in batch.captions)
    assert batch.images.shape == (8, 3, IMAGE_SIZE, IMAGE_SIZE) and 0 <= batch.images.min() < batch.images.max() <= 1


def named(prompt: str) -> Counter:
    """How many objects of each class a prompt names."""
    found = Counter()
    for before, word in pairwise(["", *prompt.split()]):
        if word in SINGULARS:
            found[SINGULARS[word]] += COUNTS.index(before) + 1 if before in COUNTS else 1
    return found


def test_each_scene_has_a_prompt_that_names_its_objects_and_that_training_may_see():
    # red if a held-out prompt is given, an object left out, or the prompt is not of the scene's own numbers
    data, of_tasks = ScenesData(batch_size=64), 0
    for batch in islice(iter(data.train_dataloader()), 4):
        for key, prompt in zip(batch.keys, batch.prompts, strict=True):
            assert named(prompt) == Counter(item.name for item in data.scene(key).objects), prompt
            assert not (prompt.startswith("a picture of") and is_held_out(prompt))
            of_tasks += prompt.startswith("a picture of")
    assert 128 < of_tasks < 256  # the others are telegraphic captions
    assert sum(len(prompt) for prompt in batch.prompts) < 0.6 * sum(len(caption) for caption in batch.captions)
    first = next(iter(ScenesData(batch_size=8).train_dataloader())).prompts
    assert first == next(iter(ScenesData(batch_size=64).train_dataloader())).prompts[:8]


def test_a_share_of_the_captions_are_prompts():
    # red if `prompt_share` is not handed on, or compared the other way round
    def sentences(**options) -> list[bool]:  # a prompt has no full stop
        return [
            "." in caption for caption in next(iter(ScenesData(batch_size=64, **options).train_dataloader())).captions
        ]

    assert all(sentences())
    assert 6 <= 64 - sum(sentences(prompt_share=0.25)) <= 28


def test_the_seed_of_training_leaves_the_held_out_pictures_alone():
    # red if the held-out set uses `seed`
    a, b = (next(iter(ScenesData(seed=seed).val_dataloader())) for seed in (0, 1))
    assert a.keys == b.keys and torch.equal(a.images, b.images)
    assert keys(ScenesData(seed=0), 1) != keys(ScenesData(seed=1), 1)


def test_held_out_scenes_in_another_art_style(tmp_path):
    # red if `glyphs` is not handed on, or training gets it as well
    Image.new("RGBA", (64, 64), (200, 200, 200, 255)).save(tmp_path / "square.webp", lossless=True)
    names = {name: {"files": ["square.webp"]} for name in CLASSES}
    (tmp_path / "glyphs.json").write_text(json.dumps({"classes": names}))
    plain, other = ScenesData(), ScenesData(glyphs=str(tmp_path))
    drawn, again = (next(iter(data.val_dataloader())) for data in (plain, other))
    assert drawn.keys == again.keys and not torch.equal(drawn.images, again.images)
    assert torch.equal(*(next(iter(data.train_dataloader())).images for data in (plain, other)))
    with pytest.raises(UsageError, match="glyphs.json"):
        ScenesData(glyphs=str(tmp_path / "none"))


def test_cells_that_the_caption_names_weigh_more():
    # red if cells are transposed, or weights follow from the picture: half of the objects are not spoken of
    weights = caption_weights(["red cat , car bottom left", "a picture of a cat left of a bus at the center"], 6.0)
    assert weights.shape == (2, 1, IMAGE_SIZE, IMAGE_SIZE) and set(weights.unique().tolist()) == {1.0, 6.0}
    assert (weights[0, 0, 64:, :32] == 6).all() and (weights[1, 0, 32:64, :64] == 6).all()  # beside the bus
    assert (weights == 6).sum((1, 2, 3)).tolist() == [32**2, 2 * 32**2]
    batch = next(iter(ScenesData(batch_size=8, object_weight=6.0).train_dataloader()))
    assert torch.equal(batch.weights, caption_weights(batch.captions, 6.0))
    assert next(iter(ScenesData(batch_size=8).train_dataloader())).weights.unique().tolist() == [1.0]
