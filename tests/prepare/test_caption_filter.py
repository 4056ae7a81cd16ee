import pytest

from uae_lightning.prepare.filters import Caption, CaptionFilter, broken

GOOD = "a long red train stands in the old station while three people wait under the clock"


@pytest.mark.parametrize(
    ("text", "finished", "fault"),
    [
        (GOOD, True, None),
        ("", True, "empty caption"),
        (" . , \n", False, "empty caption"),
        (GOOD, False, "unfinished"),
        (GOOD.replace("old", "\ufffd\ufffd"), True, "broken characters"),
        ("a red train , in the . station", True, "too short"),
        (GOOD + " " + GOOD.replace("a", "e"), True, "too long"),
        ("the red train and the red train and the red train and the red train", True, "repetitive"),
    ],
)
def test_each_fault_has_its_name(text, finished, fault):
    # red if < becomes <= (GOOD has 16 words), if stops and commas count as words, or a check is left out
    assert (
        CaptionFilter(16 if fault == "too short" or text is GOOD else 1, 20, 0.2).fault(Caption(text, finished))
        == fault
    )


def test_limits_are_allowed_themselves():
    # red if > becomes >=
    words = " ".join(f"word{index}" for index in range(10))
    assert CaptionFilter(10, 10, 0.0).fault(Caption(words, True)) is None
    assert CaptionFilter(11, 12, 0.0).fault(Caption(words, True)) == "too short"
    assert CaptionFilter(1, 9, 0.0).fault(Caption(words, True)) == "too long"


def test_every_script_is_whole_and_bytes_that_are_none_are_not():
    # red if "Cf" is among the categories, or \n is not excepted
    for text in ("une forêt\n\n- brumeuse", "一只猫在窗边", "क़िला 👩‍👩‍👧 ​", "שלום, עולם", "a\ttab"):
        assert not broken(text)
    for text in ("caf\ufffd", "a\x00b", "bell\x07", "half \ud83d"):
        assert broken(text)
