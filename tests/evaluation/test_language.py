import math

import numpy as np
import pytest
import torch

from uae_lightning.algorithms.token_logprobs import gather_logprobs
from uae_lightning.evaluation.language import Language, distinct, novelty, words_of
from uae_lightning.evaluation.language import language as health
from uae_lightning.scenes.captions import LEVELS, write_caption
from uae_lightning.scenes.grammar import grammar
from uae_lightning.scenes.scene import sample_scene
from uae_lightning.types import Captions

SCENES = [sample_scene("validation", 0, i, max_objects=4) for i in range(40)]
COMPLETE = [write_caption(scene, np.random.default_rng(i)) for i, scene in enumerate(SCENES)]


def language(captions, *rest, **options):
    """What SceneLanguage measures, without the parts of `distinct`, which belong to no caption."""
    values = health(captions, *rest, **options) | grammar(captions.texts)
    return {name: x for name, x in values.items() if not name.startswith("distinct")}


def distinct_of(texts, size):
    return distinct(novelty([words_of(text) for text in texts], size), size)


def captions_of(texts: list[str]) -> Captions:
    """One token a word, and the end-of-text token."""
    lengths = torch.tensor([len(text.split()) + 1 for text in texts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Captions(texts, mask.long(), mask)


def measured(texts: list[str]) -> dict[str, float]:
    return {name: float(np.mean(x)) for name, x in language(captions_of(texts), torch.zeros(len(texts), 1)).items()}


def scrambled(text: str) -> str:
    return " ".join(np.random.default_rng(0).permutation(text.split()))


FAULTS = {
    "scrambled": (scrambled, {"grammatical", "parses", "repetition"}),
    "unknown words": (lambda text: text.replace("a", "x").replace("e", "y"), {"grammatical", "parses"}),
    "one clause of gibberish": (
        lambda text: text + " of of it ,",
        {"grammatical", "parses", "tokens", "words", "repetition"},
    ),
    "said twice": (lambda text: f"{text} {text}", {"tokens", "words", "repetition"}),
    "more stops": (lambda text: text + " . . .", {"tokens"}),
    "upper case": (str.upper, set()),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_moves_its_figures_and_no_other(fault: str):
    # Red if fullmatch becomes match, or `or not` becomes `or`.
    plant, expected = FAULTS[fault]
    clean, faulty = measured(COMPLETE), measured([plant(text) for text in COMPLETE])
    assert {name for name in clean if clean[name] != pytest.approx(faulty[name])} == expected
    assert faulty["grammatical"] <= clean["grammatical"]
    if fault in ("scrambled", "unknown words"):
        assert faulty["grammatical"] < 0.1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("detail", [0.5, 1.0])
def test_all_that_the_writer_writes_is_grammatical(level: str, detail: float):
    # Red if any form goes from _forms.
    scenes = [sample_scene("train", 0, i, max_objects=4) for i in range(200)]
    texts = [write_caption(s, np.random.default_rng(i), level=level, detail=detail) for i, s in enumerate(scenes)]
    values = language(captions_of(texts), torch.zeros(200, 1))
    assert set(values["grammatical"]) == {1.0} == set(values["parses"])
    assert max(values["repetition"]) < 0.5


def test_values_of_known_captions():
    # Red if REPEATED becomes 3, stops count as words, or an empty caption parses.
    values = language(captions_of(["", "red cat , of of", "red cat on sand " * 2]), torch.zeros(3, 1))
    assert values["tokens"] == [1, 6, 9] and values["words"] == [0, 4, 8]
    assert values["parses"] == [0, 0, 1]
    assert values["grammatical"] == [0, 0.5, 0]
    assert values["repetition"] == [0, 0, 1 - 4 / 5]
    assert "nll" not in values


def test_nll_is_that_of_the_reference_over_the_tokens_alone(make_encoder, images):
    # Red if `* chunk.mask` goes, lengths becomes tokens.shape[1], or images[rows] becomes images.
    encoder = make_encoder()
    captions = encoder.generate(images, samples=1, temperature=1.0, max_new_tokens=12, seed=0)
    mask = captions.mask & (torch.arange(captions.tokens.shape[1]) < torch.tensor([[12], [1], [5], [3]]))
    captions = Captions(captions.texts, captions.tokens, mask)
    nll = language(captions, images, encoder, batch_size=3)["nll"]
    for row in range(4):
        one = slice(row, row + 1)
        tokens = captions.tokens[one][:, mask[row]]
        with torch.no_grad():
            logits = encoder.token_logits(
                images[one], Captions([""], tokens, torch.ones_like(tokens, dtype=torch.bool))
            )
        assert nll[row] == pytest.approx(-gather_logprobs(logits, tokens).mean().item(), rel=1e-4)


def test_the_reference_is_surprised_by_gibberish():
    # Red if the sign of nll goes. The shipped encoder has read complete captions, never scrambled ones.
    from uae_lightning.scenes.bootstrap.captioner import scenes_encoder
    from uae_lightning.scenes.scene import pictures

    encoder = scenes_encoder("shipped:scenes/encoder")
    images, clean = pictures(SCENES[:16]), encoder.tokenize(COMPLETE[:16])
    gibberish = encoder.tokenize([scrambled(text) for text in COMPLETE[:16]])
    of_another = Captions(clean.texts, clean.tokens.roll(1, 0), clean.mask.roll(1, 0))
    right, other, scramble = (language(c, images, encoder)["nll"] for c in (clean, of_another, gibberish))
    assert 2 * np.mean(right) < np.mean(other) < np.mean(scramble)


def test_the_summary_has_an_interval_for_each_figure():
    # Red if perplexity is the mean of exponentials, or n is left at that of tokens.
    values = {"tokens": [3.0, 5.0], "nll": [1.0, 3.0]}
    for size in (1, 2):
        values |= novelty([["red", "cat"], ["blue", "bus", "sand"]], size)
    summary = Language().figures(values)
    assert summary.keys() == {"tokens", "nll", "perplexity", "distinct_1", "distinct_2"}
    assert summary["perplexity"]["mean"] == pytest.approx(math.exp(2)) and summary["perplexity"]["n"] == 2
    assert summary["perplexity"]["high"] == pytest.approx(math.exp(summary["nll"]["high"]), rel=1e-3)
    assert all(x["low"] <= x["mean"] <= x["high"] for x in summary.values())


def test_distinct_counts_the_ngrams_of_the_corpus():
    # Red if n-grams reach over the end of a caption, or holders[gram] == 1 becomes >= 1 (the interval explodes).
    assert distinct_of(["red cat , sand", "red cat", "blue cat"], 1)["mean"] == 4 / 7
    assert distinct_of(["red cat , sand", "red cat", "blue cat"], 2)["mean"] == 3 / 4
    assert distinct_of(["a a a a"] * 2, 2) == {"mean": 1 / 6, "low": 1 / 6, "high": 1 / 6, "n": 2}
    assert distinct_of(["", ""], 2)["mean"] == 0
    with pytest.raises(ValueError, match="at least 2 captions"):
        distinct_of(["red cat"], 1)


def test_the_interval_of_distinct_covers_what_other_captions_give():
    # Red if the jackknife's factor (n - 1) goes. Percentiles of the bootstrap would cover 0 in 40.
    def corpus(seed: int) -> list[str]:
        scenes = [sample_scene("train", seed, i) for i in range(32)]
        return [write_caption(scene, np.random.default_rng([seed, i])) for i, scene in enumerate(scenes)]

    intervals = [distinct_of(corpus(seed), 2) for seed in range(24)]
    expected = np.mean([interval["mean"] for interval in intervals])
    covered = np.mean([interval["low"] <= expected <= interval["high"] for interval in intervals])
    assert covered >= 0.85
    assert intervals[0]["high"] - intervals[0]["low"] < 0.5 * expected
