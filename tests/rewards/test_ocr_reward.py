"""OcrReward: its rule always, its reader where the extra `ocr` is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from uae_lightning.rewards.ocr_reward import OcrReward, agreement, edit_distance, quotations
from uae_lightning.types import RewardInput
from uae_lightning.usage import UsageError


def written(text: str) -> torch.Tensor:
    """[3, 128, 256], black on white."""
    image = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(image).text((16, 32), text, fill="black", font=ImageFont.load_default(size=32))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_what_is_quoted_is_wanted():
    # red with a kind of quotation mark left out, or case and blanks kept
    text = (
        'a sign "Open Now", \u201cTea\u201d, \u201eBrot\u201c, \u300c\u732b\u300d and \u00abPain\u00bb; the dog\'s, " "'
    )
    assert quotations(text) == ["opennow", "tea", "brot", "\u732b", "pain"]
    with pytest.raises(ValueError, match="nothing is quoted in the text 'a red cat'.*double quotation"):
        quotations("a red cat")


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("ab", "ba", 2), ("ab", "ab", 0)]
)
def test_the_edit_distance_counts_letters(a, b, distance):
    # red with another cost of an insertion, a deletion or a replacement
    assert edit_distance(a, b) == distance


def test_one_text_is_worth_what_flow_grpo_gives_it():
    # red without the look for text that stands there whole, the bound at 0, or the length of what is quoted
    assert agreement(["opennow"], "we are Open now!") == 1
    assert agreement(["opennow"], "open n") == pytest.approx(5 / 7)
    assert agreement(["tea"], "a completely different sign") == 0 == agreement(["tea"], "")


def test_several_texts_are_wanted_in_any_order():
    # red if texts are joined before they are looked for, or one that was read may be read again
    assert agreement(["tea", "coffee"], "COFFEE tea") == 1
    assert agreement(["tea", "coffee"], "tee coffee") == pytest.approx(8 / 9)
    assert agreement(["tea", "tea"], "tea") == pytest.approx(1 / 2)


def test_the_reader_reads_pictures_of_a_batch():
    # red with the texts of two pictures exchanged, without the scale to 255, or a batch that is not taken one by one
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    images = torch.stack([written("Open Now"), written("Open How"), written("")])
    output = OcrReward()(RewardInput(torch.zeros(3, 3, 0, 0), images, ['a sign that says "open now"'] * 3))
    torch.testing.assert_close(output.total, torch.tensor([1, 6 / 7, 0]))
    assert output.parts["read"].tolist() == [1, 0, 0] and output.parts["ocr"] is output.total


def test_without_the_package_the_extra_is_named(monkeypatch):
    # red with the import at the top of the file, or another message
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UsageError, match=r"pip install 'uae-lightning\[ocr\]'"):
        OcrReward()


def test_a_plan_needs_no_reader(monkeypatch):
    # red without the look at `weightless`
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with torch.device("meta"):
        reward = OcrReward()
    assert reward(RewardInput(torch.zeros(2, 3, 0, 0), torch.zeros(2, 3, 8, 8), ['"a"', '"b"'])).total.shape == (2,)
