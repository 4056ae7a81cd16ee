from uae_lightning.report.captions import plain
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.marked_captions import marked_captions
from uae_lightning.scenes.scene import Scene, SceneObject, sample_scene

SCENE = Scene("sand", (SceneObject("car", "red", "large", 0), SceneObject("cat", "blue", "small", 8)))


def test_bold_is_what_was_gained_and_struck_what_is_untrue():
    # red with `true <= set(known)` negated, with `known` never updated, or with the order of color and size swapped
    first, second, third = marked_captions(
        [
            "red car , green bus top left",
            "the background is sand . there are three objects . a large red car is at the top left .",
            "the background is sand . there are two objects . a large red car is at the top left . a small blue cat is "
            "at the top left . the red car is above the blue cat . the blue cat is above the red car .",
        ],
        SCENE,
    )
    assert first == "red car , ~~green bus top left~~"  # nothing is gained before the first
    assert second == (
        "the background is **sand** . there are ~~three objects~~ . a **large** red car is at the **top left** ."
    )
    assert third == (
        "the background is sand . there are **two objects** . a large red car is at the top left . a **small blue cat**"
        " is at the ~~top left~~ . **the red car is above the blue cat** . ~~the blue cat is above the red car~~ ."
    )


def test_an_object_counts_once():
    # red without `number not in items`: a second red car would be true
    (line,) = marked_captions(["large red car top left , large red car top left"], SCENE)
    assert line == "large red car top left , ~~large red car top left~~"
    several = marked_captions(["cat", "two red cars are at the top left and the center"], SCENE)[1]
    assert several == "two **red cars** are at the **top left** and the ~~center~~"


def test_what_a_policy_makes_up_is_no_markup():
    # red without the backslashes
    assert plain("a | b <x> *c*") == r"a \| b &lt;x&gt; \*c\*"


def test_scene_of_a_key():
    # red with seed and index swapped
    assert ScenesData(max_objects=3).scene("validation-2-5") == sample_scene("validation", 2, 5, max_objects=3)
