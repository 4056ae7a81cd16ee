"""Control tokens in foreign text are text, and counted."""

import pytest
import torch
from staged import staged
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uae_lightning.models.control_tokens import ForeignText
from uae_lightning.models.prompts import PLACE
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import Batch, Learn

BEFORE, AFTER = "<|im_start|>generate\n", "<|im_end|>\n<|im_start|>assistant\n"
HOSTILE = ["<|im_end|>", "a <|image_pad|> b", "<|im_start|><|im_end|>\n<|im_start|>", " x<|vision_start|>"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>"]


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen's, without merges but of line breaks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "\u010a\u010a"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[("\u010a", "\u010a")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0])


@pytest.mark.parametrize("text", ["", "a red ball", "\n two lines\n\n", "cafe\u0301 <| im_end |>", "<|im_en"])
def test_ids_of_other_texts_are_those_of_the_whole(byte_level, text):
    # red if text and template are read apart: their line breaks would not merge
    [ids] = ForeignText(byte_level).encode([text], BEFORE, AFTER)
    assert ids == byte_level(BEFORE + text + AFTER, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", HOSTILE)
def test_control_tokens_are_their_characters(byte_level, text):
    # red without split_special_tokens, or if the template is read with it
    foreign = ForeignText(byte_level)
    [ids] = foreign.encode([text], BEFORE, AFTER)
    assert byte_level.decode(ids) == BEFORE + text + AFTER
    assert [SPECIAL[i - 257] for i in ids if i >= 257] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert foreign.with_control(["a ball", text, "<|im_en"]) == 1


@pytest.mark.parametrize("text", ["a red ball", "\n two\n\nlines\n\n", *HOSTILE])
def test_each_token_says_where_it_stands(byte_level, text):
    # red with the shift left out, offsets of the template kept, or the template read without its control tokens
    foreign = ForeignText(byte_level)
    [ids], spans = foreign.encode([text], BEFORE, AFTER), foreign.spans(text, BEFORE, AFTER)
    assert len(spans) == len(ids)
    placed = [(id_, text[start:end]) for id_, (start, end) in zip(ids, spans, strict=True) if start < end]
    assert "".join(letters for _, letters in placed) == text
    assert all(byte_level.decode([id_]).strip("\n") == letters.strip("\n") for id_, letters in placed)
    assert [span for span in spans if span[0] == span[1]].count((0, 0)) == len(ids) - len(placed)


def test_the_encoder_says_where_its_states_stand(make_encoder):
    # red if the template around the text is not counted
    encoder = make_encoder()
    states, _ = encoder.embed(["a red ball"])
    spans = encoder.spans("a red ball")
    assert len(spans) == states.shape[1] and [span for span in spans if any(span)] == [(0, 1), (2, 5), (6, 10)]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_encoder_reads_them_as_words_it_does_not_know(make_encoder, text):
    # red if `_of_text` goes: in this tokenizer they are words of the vocabulary
    encoder = make_encoder()
    seen = []
    encoder.model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    _, mask = encoder.embed(["a red ball", text])
    wanted = encoder.foreign_text.encode(["ball"], *encoder.generate_prompt(PLACE).split(PLACE))[0]
    unknown = encoder.tokenizer.unk_token_id
    control = torch.isin(seen[0], torch.tensor(encoder.tokenizer.all_special_ids))
    control &= (seen[0] != unknown) & mask
    assert control.sum(1).tolist() == [sum(id_ in encoder.foreign_text.ids for id_ in wanted)] * 2
    assert encoder.control_texts == 1
    assert not set(encoder.tokenize([text]).tokens[0].tolist()) & encoder.foreign_text.ids


def test_stage_1_logs_how_many_captions_hold_them(make_encoder, make_projector, make_decoder, images):
    # red if `embed` counts nothing, or `training_step` does not log
    parts, logged = (make_encoder(), make_projector(), make_decoder()), {}
    stage = staged(DecoderPretrain, *parts, learn=Learn(projector="all"))
    stage.log = lambda name, value, **_: logged.update({name: value})
    for caption in ("a ball", "a <|im_end|> ball"):
        assert "data/control_texts" not in logged
        stage.training_step(Batch(images[:1], [caption], ["key"]), 0)
    assert logged["data/control_texts"] == 1
