import math

import numpy as np
import pytest
import torch

from uae_lightning.paths import resolve
from uae_lightning.rewards.clip_similarity import ClipSimilarity
from uae_lightning.scenes.bootstrap import clip
from uae_lightning.scenes.detector import scene_targets
from uae_lightning.scenes.faults import FAULTS, faulty_scenes
from uae_lightning.scenes.scene import IMAGE_SIZE, sample_scene, split_of


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    tokenizer = clip.caption_tokenizer()
    return clip._ClipTask(clip.build_clip(tokenizer), tokenizer, scenes_per_step=3, seed=0)


def test_text_is_read_to_its_end_and_padding_is_not(task):
    # red if END becomes "<|im_end|>" (id 2: transformers then pools at the highest id), or $A {END} becomes $A
    read = lambda *texts: task.model.get_text_features(input_ids=task.tokenize(list(texts))).pooler_output  # noqa: E731
    with torch.no_grad():
        alone = read("red umbrella center , sand")
        padded = read("red umbrella center , sand", "red umbrella center , sand , a long and winding one")
        other = read("red umbrella center , sea")
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=1e-5)
    assert (other - alone).abs().max() > 0.01


def test_families_are_rivals_of_one_fault_and_of_the_train_split():
    # red if split_of is not asked, `<=` becomes `<`, or a member may come twice
    for index in range(40):
        scene = sample_scene("train", 0, index)
        first, *rivals = clip.family(scene, np.random.default_rng(index))
        assert first == scene and len(set(rivals)) == clip.RIVALS
        assert all(split_of(rival) == "train" for rival in rivals)
        assert all(any(rival in faulty_scenes(scene, kind) for kind in FAULTS) for rival in rivals)


def test_batches_are_functions_of_the_step(task):
    # red if rng has no step, or the scenes begin at `step`
    scenes, captions = task.batch(301)
    assert (scenes, captions) == task.batch(301)
    assert len(scenes) == 3 * (1 + clip.RIVALS) and len(captions) == len(scenes)
    assert set(task.batch(302)[0]).isdisjoint(scenes)
    assert max(len(scene.objects) for scene in task.batch(0)[0]) <= 2  # one, and perhaps one doubled


def test_contrastive_loss_is_over_rows_and_over_columns():
    # red if `.T` goes, or `/ 2`
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]])  # both pictures find caption 0; captions find any picture
    assert clip.contrastive_loss(logits).item() == pytest.approx((9 / 2 + math.log(2)) / 2, abs=1e-3)


def test_cells_are_the_means_of_their_patches():
    # red if the unflattened axes change places
    patches = torch.arange(36.0).view(1, 36, 1)  # 6 * row + column
    cells = clip.means_of_cells(patches).flatten().tolist()
    rows = (0.5, 2.5, 4.5)
    assert cells == [6 * row + column for row in rows for column in rows]


def test_heads_of_one_vector_and_of_nine(task):
    # red if the cells and the classes change places in reshape: the loss of a head that knows the answer is not 0
    scenes, _ = task.batch(300)
    targets = scene_targets(scenes)
    with torch.no_grad():
        whole = task.of_embeddings(torch.randn(len(scenes), 1, 128))
        cells = task.of_tokens(torch.randn(len(scenes), 9, 128))
    for kind, target in targets.items():
        assert whole[kind].shape == cells[kind].shape
        assert whole[kind].shape[: target.ndim] == target.shape


def test_training_writes_what_the_hub_would(tmp_path, monkeypatch):
    # red if the tokenizer or the preprocessor is not saved, or the picture is resized to another size
    monkeypatch.setattr(clip, "fault_ranking", lambda judge: {"class": [1.0, 0.0]})
    monkeypatch.setattr(clip._ClipTask, "retrieval", lambda self, count: {})
    card = clip.train_clip(tmp_path / "clip", tmp_path / "work", steps=2, scenes_per_step=2)
    assert card["faults_noticed"] == {"class": 0.5} and card["steps"] == 2
    reward = ClipSimilarity(str(tmp_path / "clip"))
    gray = torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), 0.75)
    torch.testing.assert_close(reward.preprocess(gray), torch.full_like(gray, 0.5))
    assert (tmp_path / "clip" / "tokenizer.json").exists()


def test_shipped_clip_matches_pictures_and_captions():
    # red if the images are not scaled to -1..1 in retrieval, or other weights are shipped
    from transformers import AutoTokenizer, CLIPModel

    folder = resolve("shipped:scenes/clip")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    task = clip._ClipTask(
        CLIPModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder), 1, 0
    )
    assert min(task.retrieval(128).values()) > 0.85
