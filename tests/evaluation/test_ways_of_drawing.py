"""GenEval of the same prompts drawn in several ways: guided, rewritten, refined; each a suite of its own."""

import pytest
import torch

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.evaluation import geneval
from uae_lightning.evaluation.object_detectors import ObjectDetector
from uae_lightning.evaluation.suite import Evaluation, Subject, described, evaluate
from uae_lightning.evaluation.table import table
from uae_lightning.interfaces import Reward
from uae_lightning.refinement import Refinement
from uae_lightning.report.evaluation import evaluation_section
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.scenes import instruments
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.geneval import SceneGenEval, scene_prompts
from uae_lightning.scenes.object_detector import SceneObjectDetector
from uae_lightning.types import RewardInput, RewardOutput, Sampling


class Looks(ObjectDetector):
    """Finds nothing, and remembers what it was shown."""

    names, colors, counting_threshold = SceneObjectDetector.names, SceneObjectDetector.colors, 0.0

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[torch.Tensor] = []

    def detect(self, images):
        self.shown.append(images)
        return [[] for _ in images]


class Darkness(Reward):
    needs_originals = False

    def __init__(self) -> None:
        super().__init__()
        self.captions: list[str] = []

    def forward(self, inputs: RewardInput) -> RewardOutput:
        self.captions += inputs.captions
        total = -inputs.reconstructions.mean((1, 2, 3))
        return RewardOutput(total, {"darkness": total})


@pytest.fixture
def model(make_encoder, make_projector, make_decoder):
    return AutoEncoder(make_encoder(), make_projector(), make_decoder(), sampling=Sampling(2)).eval()


def shown(model, **drawing) -> torch.Tensor:
    """Pictures that the detector gets of seven prompts."""
    detector = Looks()
    items = SceneGenEval(detector, **drawing).measure(Subject(model, None, 0, 7, batch_size=4, seed=1))
    assert sum(map(len, items.values())) == 7
    return torch.cat(detector.shown)


def test_sampling_is_that_of_the_suite_alone(model):
    # red if it is not set, or stays with the model
    model.sampling = guided = Sampling(3, 2.0)
    wanted = geneval.draw(model, scene_prompts(7, 1), seed=1, batch=4)
    model.sampling = plain = Sampling(2)
    assert torch.equal(shown(model, sampling=guided), wanted) and model.sampling is plain
    assert not torch.equal(shown(model), wanted)


def test_what_is_drawn_of_a_rewritten_prompt_is_its_caption(model):
    # red if prompts are drawn as they are, or the noise is another one
    how, texts = Captioning(0.0, 10), [prompt.text for prompt in scene_prompts(7, 1)]
    rewritten = model.rewrite(texts, how=how).texts
    assert rewritten != texts
    wanted = [geneval.Prompt("colors", text, ()) for text in rewritten]
    torch.testing.assert_close(
        shown(model, rewriting=how), geneval.draw(model, wanted, seed=1, batch=4), atol=1e-4, rtol=0
    )


def test_the_best_of_several_is_judged_by_the_prompt(model):
    # red if the rewriting is what the verifier reads, or the first candidate starts from other noise than without
    verifier, plain = Darkness(), shown(model)
    best = shown(model, refinement=Refinement(verifier, candidates=2), rewriting=Captioning(0.0, 10))
    prompts = [prompt.text for prompt in scene_prompts(7, 1)]
    assert verifier.captions == [*prompts[:4] * 2, *prompts[4:] * 2]
    assert torch.equal(shown(model, refinement=Refinement(Darkness(), candidates=1)), plain)
    best = shown(model, refinement=Refinement(Darkness(), candidates=3))
    assert (best.mean((1, 2, 3)) <= plain.mean((1, 2, 3))).all() and not torch.equal(best, plain)
    assert isinstance(SceneGenEval(Looks(), refinement=Refinement(verifier)).verifier, Darkness)  # moved with the suite


def test_a_verifier_that_needs_originals_is_refused():
    # red if it is found out after hours of drawing
    with pytest.raises(ValueError, match="PixelSimilarity compares with an original"):
        SceneGenEval(Looks(), refinement=Refinement(PixelSimilarity()))


def test_several_in_one_evaluation_keep_their_figures_apart(model):
    # red if reports take a suite's title for its name, or the settings are not said
    suites = {
        "geneval": SceneGenEval(SceneObjectDetector()),
        "geneval_guided": SceneGenEval(SceneObjectDetector(), sampling=Sampling(3, 2.5)),
        "geneval_rewritten": SceneGenEval(SceneObjectDetector(), rewriting=Captioning(0.0, 10)),
    }
    evaluation = Evaluation(ScenesData(validation_pictures=4), suites, samples=4, drawings=12, batch_size=12)
    figures, items = evaluate(model, evaluation)
    assert list(figures) == list(suites) == list(items)
    record = {"figures": figures, "suites": described(suites, figures, items), "kin_of_reward": []}
    printed = table(record)
    assert all(f"\n{name}\n" in printed for name in suites)
    page = evaluation_section({**record, "before": figures, "after": figures, "gain": figures})
    assert all(f"{name}: GenEval" in page for name in suites)
    assert page.count("3 steps with guidance 2.5") == page.count("prompts rewritten by the encoder") == 1


def test_the_same_detector_is_checked_once(model, monkeypatch):
    # red if the accuracy is measured for each suite
    calls = []
    monkeypatch.setattr(
        instruments, "instrument_accuracy", lambda *args: calls.append(args) or {"position": [1.0, 1.0]}
    )
    suites = {name: SceneGenEval(SceneObjectDetector()) for name in ("geneval", "geneval_guided")}
    subject = Subject(model, ScenesData(validation_pictures=4), 4, 12, suites=suites)
    items = instruments.Instruments().measure(subject)
    assert len(calls) == 1 and items["geneval/position"] == [1.0, 1.0]
