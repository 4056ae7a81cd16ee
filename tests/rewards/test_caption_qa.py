"""CaptionQA against a language model of transformers used the plain way: a question at a time, without padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from test_hub_models import with_large_weights
from tokenizers import Tokenizer, models, pre_tokenizers

from uae_lightning.rewards.caption_qa import LETTERS, CaptionQA, question_of
from uae_lightning.types import RewardInput

TEMPLATE = "{% for m in messages %}<user> {{ m.content }} <end>{% endfor %} <answer> "
WORDS = (
    "<pad> <end> <user> <answer> ? . a the red blue green one two cat cats and bus which color has how many are there"
)
COLORS = {"question": "which color has the cat ?", "options": ["red", "blue", "green"], "answer": "red"}
COUNTS = {"question": "how many are there ?", "options": ["one", "two"], "answer": "two"}
CAPTIONS = ["a red cat", "two blue cats and a green bus", "a red cat", "there are two"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    vocabulary = {word: place for place, word in enumerate([*WORDS.split(), *LETTERS, "unknown"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="unknown"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(".", "isolated")]
    )
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="unknown")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    with_large_weights(hf.Qwen2ForCausalLM(config)).save_pretrained(folder)
    return folder


def inputs(captions: list[str]) -> RewardInput:
    rows = [{"questions": [COLORS, COUNTS] if place % 2 else [COLORS]} for place in range(len(captions))]
    drawn = torch.zeros(len(captions), 3, 4, 4)
    return RewardInput(drawn, drawn, captions, metadata=rows)


@torch.no_grad()
def plainly(folder: Path, caption: str, row: dict) -> tuple[float, float]:
    """(whether it is answered rightly, probability of the right option) by the letters of the text that is asked."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    turn = question_of(row).asked_of(caption)
    ids = tokenizer(f"<user> {turn} <end> <answer>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    logits = model(ids).logits[0, -1]
    shown = [line.partition(". ")[2] for line in turn.splitlines() if line[1:3] == ". "]
    assert sorted(shown) == sorted(row["options"])
    chances = logits[tokenizer.convert_tokens_to_ids(list(LETTERS[: len(shown)]))].softmax(0)
    right = shown.index(row["answer"])
    return float(chances.argmax() == right), chances[right].item()


@pytest.mark.parametrize("micro_batch", [1, 16])
def test_it_answers_as_the_plain_model_does(folder, micro_batch):
    # red if padding reaches the answer, a letter is another option's, or an answer is another caption's
    given = inputs(CAPTIONS)
    output = CaptionQA(str(folder), dtype="float32", micro_batch=micro_batch)(given)
    wanted = [
        torch.tensor([plainly(folder, caption, row) for row in rows["questions"]]).mean(0)
        for caption, rows in zip(CAPTIONS, given.metadata, strict=True)
    ]
    found = torch.stack([output.parts["answered"], output.parts["confidence"]], 1)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-4)
    assert output.total is output.parts["answered"] and found[:, 1].std() > 0.01
    sure = CaptionQA(str(folder), total="confidence", dtype="float32")(given)
    assert sure.total is sure.parts["confidence"]


def test_the_right_option_is_not_always_the_first():
    # red if options are shown as they stand, or in another order each time
    orders = [question_of(COLORS | {"question": f"which color {number} ?"}) for number in range(20)]
    assert {question.answer for question in orders} == {0, 1, 2}
    assert all(question.options[question.answer] == "red" for question in orders)
    assert question_of(COLORS) == question_of(COLORS)


def test_equal_captions_are_read_once(folder, monkeypatch):
    # red without `set` in probabilities
    reward, turns = CaptionQA(str(folder), dtype="float32"), []
    plain = reward.next_letter
    monkeypatch.setattr(reward, "next_letter", lambda texts: turns.extend(texts) or plain(texts))
    reward(inputs(CAPTIONS))
    assert len(turns) == len(set(turns)) == 5


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "no questions under 'questions'.*metadata_columns: \\[questions\\]"),
        ([{"questions": []}], "no questions under"),
        ([{"questions": ["what?"]}], "a question needs a text and 2 to 26 texts as options"),
        ([{"questions": [COLORS | {"answer": "pink"}]}], "the answer must be one of the options, got 'pink'"),
    ],
)
def test_questions_that_are_none_are_named(folder, metadata, words):
    # red if an error of Python comes through
    with pytest.raises(ValueError, match=words):
        CaptionQA(str(folder), dtype="float32")(replace(inputs(CAPTIONS[:1]), metadata=metadata))
