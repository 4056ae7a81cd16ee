import pytest

from uae_lightning.data.image_text import read_caption
from uae_lightning.data.images import BadFile
from uae_lightning.data.words import count_words, words_of
from uae_lightning.prepare.filters import Caption, CaptionFilter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red cat , left of it a dog .", 8),
        ("it's a well-known place, isn't it?", 6),
        ("窗边有一只红色的猫。", 9),
        ("赤い猫が、窓のそばに座っている。", 14),
        ("a red 猫 on 窗台", 6),
        ("빨간 고양이가 창가에 앉아 있다", 5),
        ("แมวสีแดงนั่งอยู่ข้างหน้าต่าง", 7),
        ("y" * 400, 10),
        ("", 0),
        (" . , \n。", 0),
    ],
)
def test_words_of_languages_without_blanks(text: str, words: int):
    # red if a run without blanks is one word, or marks of punctuation are words
    assert len(words_of(text)) == words


@pytest.mark.parametrize("text", ["猫" * 20_000, "猫が座っている。" * 3000, "แมว" * 20_000, "x" * 200_000, ". " * 2000])
def test_a_text_that_is_too_long_is_so_without_blanks(text: str):
    # red if words are what blanks part, or marks between blanks are not counted
    assert count_words(text) > 1000
    with pytest.raises(BadFile, match="overlong caption"):
        read_caption(text)


def test_captions_of_the_right_length_are_kept():
    # red if --min-words counts blanks, or repetition is not seen where there are none
    sentence = "".join(chr(0x4E00 + 7 * i) for i in range(300))
    limits = CaptionFilter(250, 600, 0.2)
    assert limits.fault(Caption(sentence, True)) is None and read_caption(sentence) == sentence
    assert limits.fault(Caption(sentence[:200], True)) == "too short"
    assert limits.fault(Caption(sentence * 3, True)) == "too long"
    assert limits.fault(Caption(sentence[:150] * 2, True)) == "repetitive"
