"""Several drawings of a text, the best of which is kept."""

import pytest
import torch

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Decoder, Reward
from uae_lightning.refinement import Refined, Refinement, noises
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.types import RewardInput, RewardOutput, Sampling

TEXTS = ["a red ball", "a star", "two red cats"]


class Told(Reward):
    """Scores that were told, drawing by drawing; remembers what it was asked."""

    needs_originals = False

    def __init__(self, scores: list[list[float]]) -> None:
        super().__init__()
        self.scores, self.seen = scores, []

    def forward(self, inputs: RewardInput) -> RewardOutput:
        self.seen.append(inputs)
        total = torch.tensor(self.scores[len(self.seen) - 1])
        return RewardOutput(total, {"told": total})


@pytest.fixture
def model(make_encoder, make_projector, make_decoder):
    return AutoEncoder(make_encoder(), make_projector(), make_decoder(), sampling=Sampling(3)).eval()


def drawings(model, count: int) -> list[torch.Tensor]:
    noise = noises(model, 3, 7)
    with torch.no_grad():
        return [model.draw(model.read(TEXTS), noise(number)) for number in range(count)]


def test_the_best_of_each_text_is_kept(model):
    # red if one text's score decides for all, the lowest wins, or a later drawing wins a tie
    verifier = Told([[0.1, 0.9, 0.5], [0.3, 0.2, 0.5], [0.2, 0.4, 0.4]])
    best, first = Refinement(verifier, candidates=3).draw(model, TEXTS, noises(model, 3, 7))
    one, two, _ = drawings(model, 3)
    assert torch.equal(best.pictures, torch.stack([two[0], one[1], one[2]])) and not torch.equal(one, two)
    assert best.scores.tolist() == pytest.approx([0.3, 0.9, 0.5]) and first.tolist() == pytest.approx([0.1, 0.9, 0.5])


def test_one_candidate_is_the_drawing_itself(model):
    # red if the first noise is not that of the seed: the control at equal calls would be another picture
    best, _ = Refinement(Told([[0.0] * 3]), candidates=1).draw(model, TEXTS, noises(model, 3, 7))
    assert torch.equal(best.pictures, model.generate(TEXTS, 7))


def test_a_later_round_starts_from_the_best_of_those_before_it(model):
    # red if it starts from the first drawing, from the best of its own round, or from noise
    verifier = Told([[0.1] * 3, [0.5] * 3, [0.6] * 3, [0.9, 0.6, 0.2]])
    refinement = Refinement(verifier, rounds=2, candidates=2, restart=0.5)
    best, _ = refinement.draw(model, TEXTS, noise := noises(model, 3, 7))
    with torch.no_grad():
        read = model.read(TEXTS)
        start = model.draw_latents(read, noise(1))
        again = [model.decoder.decode_latents(model.redraw_latents(start, 0.5, read, noise(n))) for n in (2, 3)]
    assert torch.equal(best.pictures, torch.stack([again[1][0], again[0][1], again[0][2]]))


def test_a_restart_at_1_draws_anew(model):
    # red if the level 1 is not in the schedule, or the start reaches the picture there
    noise = noises(model, 3, 7)
    with torch.no_grad():
        read = model.read(TEXTS)
        anew = model.draw_latents(read, noise(1))
        assert torch.equal(model.redraw_latents(model.draw_latents(read, noise(0)), 1.0, read, noise(1)), anew)
    verifier = Told([[0.0] * 3, [1.0] * 3])
    best, _ = Refinement(verifier, rounds=2, candidates=1, restart=1.0).draw(model, TEXTS, noise)
    assert torch.equal(best.latents, anew)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("restart", "again"), [(1.0, 3), (0.9, 3), (0.8, 2), (0.5, 1)])  # 1, .86, .6, 0
def test_its_cost_is_what_the_decoder_is_called(model, guidance, restart, again, monkeypatch):
    # red if a restart is priced as a whole drawing, guidance forgotten, or rounds and candidates are added
    model.sampling = Sampling(3, guidance)
    calls, velocity = [], model.decoder.velocity
    monkeypatch.setattr(model.decoder, "velocity", lambda *args: calls.append(len(args[0])) or velocity(*args))
    refinement = Refinement(Told([[0.0] * 3] * 6), rounds=3, candidates=2, restart=restart)
    refinement.draw(model, TEXTS, noises(model, 3, 0))
    branches = 1 if guidance == 1 else 2
    assert refinement.calls(model) == sum(calls) / 3 == 2 * (3 + 2 * again) * branches


def test_it_is_judged_by_originals_or_by_prompts(model, images):
    # red if the captions that were drawn are judged in place of the prompts, or originals stay behind
    told = Told([[0.0] * 3] * 2)
    Refinement(told, candidates=1).draw(model, TEXTS, noises(model, 3, 0), prompts=["ball", "star", "cats"])
    Refinement(told, candidates=1).draw(model, TEXTS, noises(model, 3, 0), originals=images[:3])
    assert [inputs.captions for inputs in told.seen] == [["ball", "star", "cats"], TEXTS]
    assert told.seen[0].originals.shape == (3, 3, 0, 0) and torch.equal(told.seen[1].originals, images[:3])


def test_what_compares_with_originals_cannot_judge_drawings_of_texts(model):
    # red if a sum asks its first reward alone, or `needs_originals` is False by default
    both = WeightedSum({"told": Told([]), "pixels": PixelSimilarity()}, {"told": 1.0, "pixels": 1.0})
    for verifier in (PixelSimilarity(), both):
        with pytest.raises(ValueError, match=f"{type(verifier).__name__} compares with an original.*CaptionLikelihood"):
            Refinement(verifier).draw(model, TEXTS, noises(model, 3, 0))
    assert not WeightedSum({"told": Told([])}, {"told": 1.0}).needs_originals


def test_a_verifier_that_does_not_know_is_refused(model):
    # red without the look: NaN is greater than nothing, so the first drawing would always be the best
    with pytest.raises(ValueError, match="Told gives NaN"):
        Refinement(Told([[0.0, float("nan"), 0.0]])).draw(model, TEXTS, noises(model, 3, 0))


def test_a_decoder_that_starts_from_noise_alone_says_so(model):
    # red if `redraw` of the base class draws anew in silence
    with pytest.raises(ValueError, match="SD3Decoder does not start from a noisy picture: set restart to 1"):
        Decoder.redraw(model.decoder, None, 0.5, None, None, Sampling())


@pytest.mark.parametrize("options", [{"restart": 0.0}, {"restart": 1.1}, {"rounds": 0}, {"candidates": 0}])
def test_options_out_of_range_are_refused(options):
    # red without `checked`, or with 0 allowed as a level
    with pytest.raises(ValueError, match=next(iter(options))):
        Refinement(Told([]), **options)


def test_better_is_decided_row_by_row():
    # red if `where` is turned round
    a = Refined(torch.zeros(2, 1, 1, 1), torch.zeros(2, 3, 1, 1), torch.tensor([1.0, 2.0]))
    b = Refined(torch.ones(2, 1, 1, 1), torch.ones(2, 3, 1, 1), torch.tensor([2.0, 1.0]))
    for best in (a.or_better(b), b.or_better(a)):
        assert best.scores.tolist() == [2.0, 2.0]
        assert best.pictures[:, 0, 0, 0].tolist() == best.latents.flatten().tolist() == [1.0, 0.0]
