"""The rank of a reconstruction's source."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from uae_lightning.evaluation.retrieval import Retrieval, first_of_likest, ranks_of_sources
from uae_lightning.evaluation.suite import RoundTrip, Subject
from uae_lightning.rewards.pixel_similarity import Pixels
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.types import Captions

N = 12


class Seen(Subject):
    round_trip = None


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    return pictures([sample_scene("test", 0, index) for index in range(N)])


def subject(originals: torch.Tensor, reconstructions: torch.Tensor, data: L.LightningDataModule | None = None) -> Seen:
    found = Seen(None, data or ScenesData(split="test", validation_pictures=N, validation_batch_size=5), N, 1)
    keys = [str(index) for index in range(len(originals))]
    found.round_trip = RoundTrip(originals, Captions([], torch.zeros(0, 0), torch.zeros(0, 0)), reconstructions, keys)
    return found


def test_ranks_by_hand():
    # red with > in place of >=, ascending ranks, or rows and columns turned round
    originals = torch.eye(3)
    drawn = torch.tensor([[1.0, 0.5, 0.0], [0.9, 0.8, 0.1], [0.5, 0.5, 0.5]])
    assert ranks_of_sources(originals, drawn).tolist() == [1, 2, 3]


def test_a_perfect_round_trip_finds_all_and_a_blind_one_nothing(scenes):
    # red if reconstructions are looked for among themselves, or ties count as found
    suite = Retrieval({"pixels": Pixels()}, among=N)
    items = suite.measure(subject(scenes, scenes))
    assert items == {"pixels": [1.0] * N, "mrr_pixels": [1.0] * N}
    blind = suite.measure(subject(scenes, torch.full_like(scenes, 0.5)))  # gray is the zero of `Pixels`
    assert blind["pixels"] == [0.0] * N and blind["mrr_pixels"] == [1 / N] * N
    assert suite.figures(items)["pixels"]["mean"] == 1 and suite.better("mrr_pixels") == 1


def test_the_number_of_originals_is_fixed(scenes):
    # red if the pool is what made the round trip: fewer samples would look like a better model
    few = 3
    noise = torch.randn(scenes[:few].shape, generator=torch.Generator().manual_seed(0))
    noisy = (scenes[:few] + 0.3 * noise).clamp(0, 1)
    parts = [Retrieval({"pixels": Pixels()}, among=N).measure(subject(*pair)) for pair in
             [(scenes, torch.cat([noisy, scenes[few:]])), (scenes[:few], noisy)]]  # fmt: skip
    assert parts[0]["mrr_pixels"][:few] == parts[1]["mrr_pixels"] and len(parts[1]["pixels"]) == few
    assert len(Retrieval({"pixels": Pixels()}, among=5).measure(subject(scenes, scenes))["pixels"]) == 5


def test_the_likest_are_the_hardest():
    # red if the farthest codes are taken, the source is its own negative, or negatives are those of the reconstruction
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(20, 80, generator=generator).repeat_interleave(10, 0)
    originals = F.normalize(kinds + 0.2 * torch.randn(200, 80, generator=generator), dim=1)
    drawn = F.normalize(originals[:30] + 0.1 * torch.randn(30, 80, generator=generator), dim=1)
    hard, easy = first_of_likest(originals, drawn, 9), ranks_of_sources(originals, drawn) == 1
    assert torch.equal(hard, easy)  # all that come before a source are of its kind
    assert 0 < hard.double().mean() < 1 and first_of_likest(originals, originals[:30], 9).all()
    with pytest.raises(ValueError, match="hard_from must be more than `among` 12"):
        Retrieval({"pixels": Pixels()}, among=12, hard_from=12)


def test_too_few_pictures_are_refused(scenes):
    # red if the rank among fewer goes by the same name
    with pytest.raises(ValueError, match="12 held-out pictures, retrieval is among 13: lower `among`"):
        Retrieval({"pixels": Pixels()}, among=N + 1).measure(subject(scenes, scenes))


def test_the_shipped_evaluation_has_it():
    # red with another name of an option in conf/scenes/evaluation.yaml, or the reward among the judges
    from pathlib import Path

    from uae_lightning.run.compiled import build_evaluation, parse_evaluation
    from uae_lightning.run.spec import EvaluationSpec

    file = Path(__file__).parents[2] / "conf" / "scenes" / "retrieval.yaml"
    suite = build_evaluation(parse_evaluation(EvaluationSpec(file, {}))).suites["retrieval"]
    assert suite.among == 192 and set(suite.judges()) == {"scenes_clip", "scene_detector", "pixels"}
