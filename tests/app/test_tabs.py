"""What each button gives, on a run of small models of the real classes."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import small_runs
import torch
from small_runs import scene

from uae_lightning.app import drawing, html, prompts, round_trip, wording
from uae_lightning.app.drawing import Settings
from uae_lightning.app.models import READ_BACK, START
from uae_lightning.app.pictures import data_url, picture_in
from uae_lightning.refinement import seed_of
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.types import RewardInput
from uae_lightning.usage import UsageError

runs, tabs = small_runs.runs, small_runs.tabs


PICTURE = re.compile(r'src="(data:[^"]+)"')


def shown(page: str) -> list[np.ndarray]:
    return [np.asarray(picture_in(url)) for url in PICTURE.findall(page)]


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0) * 255).round().byte().numpy()


def test_reconstruct_shows_words_steps_pictures_and_rewards(tabs):
    # red if another caption is drawn than is shown, judges see the 8-bit pictures' order turned round, or no steps
    pages = list(tabs.reconstruct("small", data_url(scene(0)), 3, 1.5, 4))
    (last, caption), model = pages[-1], tabs.models.latest("small")
    original = torch.from_numpy(np.array(scene(0))).permute(2, 0, 1)[None] / 255
    captions, drawing = model.reconstruct(original, 4)
    assert caption == captions.texts[0] and all(said is None for _, said in pages[:-1])
    left, right, *_ = shown(last)
    assert np.array_equal(left, np.array(scene(0))) and np.array_equal(right, as_bytes(drawing[0]))
    reward = PixelSimilarity()(RewardInput(original, drawing, captions.texts)).total.item()
    assert f"<b>{reward:.4f}</b> PixelSimilarity" in last and last.count("step ") >= 3
    assert 'data-done="true"' in last and not any('data-done="true"' in page for page, _ in pages[:-1])
    growing = [re.search(r"uae-caption\">(.*?)<", page)[1] for page, _ in pages if "uae-caption" in page]
    assert all(caption.startswith(text) for text in growing) and len(set(growing)) > 2


def test_generate_ranks_by_the_verifier(tabs):
    # red with the worst first, equal seeds, or the verifier asked about the rewritten text
    model = tabs.models.latest("small")
    verifier = tabs.models.ranking(READ_BACK, model)
    *_, last = prompts.generate(model, verifier, " a red cat ", Settings(seed=2), candidates=3)
    assert {one.seed for one in last.candidates} == {2, seed_of(2, 1), seed_of(2, 2)}
    for one in last.candidates:
        image = model.generate(["a red cat"], one.seed)
        assert np.array_equal(np.asarray(one.picture), as_bytes(image[0]))
        score = verifier(RewardInput(torch.empty(1, 3, 0, 0), image, ["a red cat"])).total.item()
        assert one.score == pytest.approx(score, abs=1e-4)
    scores = [one.score for one in last.candidates]
    assert scores == sorted(scores, reverse=True)
    *_, page = tabs.generate("small", "a red cat", 2, 1.0, 0, 2, READ_BACK, True)
    assert "the prompt, rewritten" in page and page.index("best") < page.index("2. <b>")


def test_compare_draws_with_the_weights_of_each_stage(tabs):
    # red with the last weights for all moments, or the rewards of another picture
    *_, last = round_trip.along_the_run(tabs.models, "small", scene(1), Settings(seed=1))
    assert [one.title for one in last] == ["at the start", "after first", "after second"]
    pictures = [np.asarray(one.drawing) for one in last]
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])
    latest = tabs.models.latest("small").generate([last[2].caption], 1)[0]
    assert np.array_equal(pictures[2], as_bytes(latest)) and all("PixelSimilarity" in one.scores for one in last)
    *_, page = tabs.compare("small", data_url(scene(1)), 3, 1.5, 1)
    assert 'data-done="true"' in page and page.count("<figure") == 4


def test_an_edited_caption_is_drawn_from_the_same_noise(tabs):
    # red with another seed for the second picture
    model = tabs.models.latest("small")
    same = wording.redraw(model, "a red cat", "a red cat ", Settings(seed=3))
    other = wording.redraw(model, "a red cat", "a blue cat", Settings(seed=3))
    assert same.change == 0 and other.change > 0
    assert np.array_equal(np.asarray(other.before), as_bytes(model.generate(["a red cat"], 3)[0]))
    assert f"{other.change:.2%}" in tabs.redraw("small", "a red cat", "a blue cat", 3, 1.5, 3)


def test_each_word_is_left_out_in_turn(tabs):
    # red if marks count as words, the gap of a word stays, or changes are of another word
    model = tabs.models.latest("small")
    *_, last = wording.listen(model, "a red cat , grass", Settings(seed=3))
    words = [last.text[piece.start : piece.end] for piece in last.pieces]
    assert words == ["a", "red", "cat", "grass"] and wording.left_out(last.text, last.pieces[2]) == "a red , grass"
    without = as_bytes(model.generate(["a cat , grass"], 3)[0])
    assert np.array_equal(np.asarray(last.pieces[1].without), without) and last.pieces[1].change > 0
    whole = as_bytes(model.generate(["a red cat , grass"], 3)[0])
    gap = np.abs(whole.astype(float) - without).mean() / 255
    assert last.pieces[1].change == pytest.approx(gap, abs=1e-6)
    *_, page = tabs.listen("small", "a red cat , grass", 3, 1.5, 3, "words", wording.LEFT_OUT)
    assert page.count("<mark") == 4 and page.count("<figure") == 5


def test_the_gradient_goes_to_the_states_of_each_word(tabs):
    # red with `states` detached from the drawing, shares of another word, or what stands around the text left out
    model = tabs.models.latest("small")
    *_, last = wording.listen_by_gradient(model, "a red cat , grass", Settings(seed=3))
    assert [last.text[piece.start : piece.end] for piece in last.pieces] == ["a", "red", "cat", "grass"]
    size = wording.heard(model, drawing.read(model, last.text), 3)
    words = [place for place, (start, end) in enumerate(model.reader.spans(last.text)) if start < end]
    assert len(words) == 5 and len(size) > 5  # the comma is a state and no word
    for place, piece in zip([words[0], words[1], words[2], words[4]], last.pieces, strict=True):
        assert piece.change == pytest.approx((size[place] / size.norm()).item(), rel=1e-4) and piece.change > 0
    assert all(weight.grad is None for weight in model.parameters())
    *_, page = tabs.listen("small", "a red cat , grass", 3, 1.5, 3, "words", wording.GRADIENT)
    assert page.count("<mark") == 4 and page.count("<figure") == 1 and f"<b>{last.pieces[2].change:.2%}</b>" in page


def test_a_word_that_the_decoder_cannot_see_has_no_gradient(tabs):
    # red if the mask is left behind where the states are replaced
    model = tabs.models.latest("small")
    conditioning = drawing.read(model, "a red cat")
    cat = model.reader.spans("a red cat").index((6, 9))
    seen = conditioning.mask.clone()
    seen[0, cat:] = False  # padding stands on the right
    size = wording.heard(model, replace(conditioning, mask=seen), 3)
    assert (size[cat:] == 0).all() and (size[:cat] > 0).all()


def test_who_draws_otherwise_has_no_gradient_to_go_by(tabs):
    # red with the message of stages, which asks for another stage
    model = copy.copy(tabs.models.latest("small"))
    model.__dict__["_modules"] = model._modules | {"decoder": torch.nn.Identity()}
    with pytest.raises(UsageError, match="which Identity does not draw by: choose 'left out"):
        next(wording.listen_by_gradient(model, "a red cat", Settings()))


def test_sentences_are_pieces_too():
    # red with the stop left behind
    text = "the sky is blue . there is a cat ; it sleeps."
    assert [text[p.start : p.end].strip() for p in wording.pieces_of(text, "sentences")] == [
        "the sky is blue .", "there is a cat ;", "it sleeps.",
    ]  # fmt: skip
    for wrong, words in (("cat", "two words"), ("a " * 200, "are the limit")):
        with pytest.raises(UsageError, match=words):
            wording.pieces_of(wrong, "words")


def test_texts_of_users_are_shown_as_text(tabs):
    # red without `escape` in any of them
    evil = '<img src=x onerror="alert(1)"> {{x}} red cat'
    model = tabs.models.latest("small")
    *_, heard = wording.listen(model, evil, Settings(steps=1))
    *_, made = prompts.generate(model, tabs.models.ranking(READ_BACK, model), evil, Settings(steps=1))
    drawn = round_trip.RoundTrip("<i>", scene(0), evil, (scene(0),), 1, {"<i>": 1.0}, "<i>")
    rewritten = prompts.Generated("cat", evil, 1, "<i>", made.candidates)
    for page in (html.listening(heard), html.generated(made), html.round_trip(drawn), html.along([drawn], 1),
                 html.generated(rewritten)):  # fmt: skip
        assert "<img src=x" not in page and "<i>" not in page


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda tabs: tabs.reconstruct("none", "", 3, 1, 0), "no run 'none'"),
        (lambda tabs: tabs.reconstruct("../secret_place/small", "", 3, 1, 0), "no run"),
        (lambda tabs: tabs.reconstruct("small", None, 3, 1, 0), "no picture yet"),
        (lambda tabs: tabs.reconstruct("small", None, 2.5, 1, 0), "whole number"),
        (lambda tabs: tabs.generate("small", "  ", 3, 1, 0, 1, READ_BACK, False), "no text yet"),
        (lambda tabs: tabs.generate("small", "a" * 5000, 3, 1, 0, 1, READ_BACK, False), "5000 letters"),
        (lambda tabs: tabs.generate("small", "a cat", 3, 1, 0, 999, READ_BACK, False), "candidates must be"),
        (lambda tabs: tabs.generate("small", "a cat", 3, 1, 0, 1, "os.system", False), "no verifier"),
        (lambda tabs: tabs.listen("small", "a cat", 3, 1, 0, "letters", wording.LEFT_OUT), "choose one of words"),
        (lambda tabs: tabs.listen("small", "a cat", 3, 1, 0, "words", "aloud"), "choose one of left"),
    ],
)
def test_mistakes_are_told_in_words(call, words, tabs):
    # red if any of them ends in another error, or in none
    with pytest.raises(UsageError, match=words):
        list(call(tabs))


def test_the_start_and_settings_of_training_are_offered(tabs):
    # red with a default of Sampling in place of what the YAML says
    assert tabs.models.names() == ["small", START]
    assert vars(tabs.sampling("small")) == vars(tabs.sampling(START)) == {"steps": 3, "guidance": 1.5}
