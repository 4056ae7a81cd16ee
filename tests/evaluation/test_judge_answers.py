"""How a judge's answers are read: by hand, and what is none."""

import pytest

from uae_lightning.evaluation.judge_answers import Lists, ProbabilityOf, Rubric, YesNo

WISE = Rubric(("Consistency", "Realism", "Aesthetic Quality"), 2)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Yes.", [1.0]),
        ("**no**, it is a dog", [0.0]),
        ("yes", [1.0]),
        ("Nobody is there", None),
        ("It does", None),
        ("", None),
    ],
)
def test_yes_and_no(text, marks):
    # red if "Nobody" is a no, or words around hide it
    assert YesNo().read(text) == marks


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", [1.0, 0.5, 0.0]),
        ("**Consistency**: 1\n**Realism:** 2\n- aesthetic quality = 2", [0.5, 1.0, 1.0]),
        ("Consistency: 0? No.\nRealism: 0\nAesthetic Quality: 1\nConsistency: 2", [1.0, 0.0, 0.5]),  # the last
        ("Consistency: 2\nRealism: 1", None),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0", None),
        ("2 1 0", None),
    ],
)
def test_a_rubric(text, marks):
    # red if the first line of a name counts, marks are not halved, or one outside the scale is taken
    assert WISE.read(text) == marks


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("It holds. [1, 0, 1]", [1.0, 0.0, 1.0]),
        ("<analysis>['[1] is', 'b', 'c']</analysis>\n<score>[0,0,1]</score>", [0.0, 0.0, 1.0]),
        ("such as [1, 1, 1]; so [0, 1, 0]", [0.0, 1.0, 0.0]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("1, 0, 1", None),
    ],
)
def test_a_list(text, marks):
    # red if an earlier list counts, or one of another length
    assert Lists((3,), 0, 1).read(text) == marks


def test_several_lists():
    # red if they are not the last ones, in their order
    two = Lists((2, 2), 1, 10)
    assert two.read("[5, 5] First: [8, 7]\nSecond: [10, 1]") == [8.0, 7.0, 10.0, 1.0] and two.count == 4
    assert two.read("First: [8, 7, 1]\nSecond: [10, 1]") is None and two.read("First: [0, 7] Second: [1, 1]") is None


def test_probabilities():
    # red if words are not added up, or what is not there is unread
    reading = ProbabilityOf(("four", "4"))
    assert reading.read({"four": 0.5, "4": 0.25, "five": 0.2}) == [0.75] and reading.read({"five": 0.9}) == [0.0]
    assert reading.read({"four": 0.7, "4": 0.5}) == [1.0] and reading.read({}) is None
