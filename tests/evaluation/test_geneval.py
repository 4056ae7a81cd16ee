"""The GenEval score: its rule, its prompts, its pictures, and its judge on scenes with planted faults."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.evaluation import geneval
from uae_lightning.evaluation.geneval import TASKS, GenEval, Prompt, Wanted, relations, score
from uae_lightning.evaluation.object_detectors import DetectedObject, ObjectDetector
from uae_lightning.scenes.faults import FAULTS, faulty_scenes
from uae_lightning.scenes.geneval import BREAKS, instrument_accuracy, perfect, planted, scene_prompts
from uae_lightning.scenes.object_detector import SceneObjectDetector
from uae_lightning.scenes.prompts import prompts
from uae_lightning.scenes.scene import IMAGE_SIZE, render
from uae_lightning.types import Sampling

OFFICIAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "two_object",
        "include": [{"class": "cup", "count": 1}, {"class": "tv remote", "count": 1}],
        "prompt": "a photo of a cup and a tv remote",
    },
    {
        "tag": "counting",
        "include": [{"class": "bus", "count": 3}],
        "exclude": [{"class": "bus", "count": 4}],
        "prompt": "a photo of three buses",
    },
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "car", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a car left of a dog",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "pizza", "count": 1, "color": "red"}, {"class": "bed", "count": 1, "color": "black"}],
        "prompt": "a photo of a red pizza and a black bed",
    },
]


def thing(name, x=0.0, y=0.0, *, side=10.0, score=0.9, color=None):
    return DetectedObject(name, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), score, color)


# ------------------------------------------------------------------------------------------------------- the score


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (30, 30, {"right of", "below"}),  # (30 - 2) / 42.4 = 0.66 both ways
        (48, 24, {"right of"}),  # (24 - 2) / 53.7 = 0.41
        (2, 0, set()),  # 0.1 * (10 + 10): not yet beyond
        (3.9, 0, set()),  # (3.9 - 2) / 3.9 = 0.49
        (4.1, 0, {"right of"}),  # 0.51
        (0, 0, set()),
    ],
)
def test_relations_follow_geneval_s_geometry(dx, dy, expected):
    # Red if 0.1 becomes 0.2 or 0.05, 0.5 becomes 0.4, or the offset is divided by what is left of it.
    assert relations(thing("a", 50 + dx, 50 + dy).box, thing("b", 50, 50).box) == expected


def test_large_boxes_need_more_distance():
    # Red if the extent is that of one box only (.sum(0) becomes [0]), or of the wrong axis.
    at = {"a": (0, 0, 10, 100), "b": (7, 0, 17, 100)}
    assert relations(at["b"], at["a"]) == {"right of"}  # (7 - 2) / 7
    at["a"] = (-35, 0, 45, 100)  # the same center, 80 wide: 7 - 9 < 0
    assert relations(at["b"], at["a"]) == set()


def test_count_color_and_exclusion():
    # Red if `< wanted.count` becomes `<= `, `< unwanted.count` becomes `<=`, or the check of the color goes.
    three = Prompt("counting", "", (Wanted("cat", 3),), (Wanted("cat", 4),))
    assert [score(three, [thing("cat")] * n + [thing("bus")]) for n in (2, 3, 4)] == [False, True, False]
    red = Prompt("colors", "", (Wanted("cat", color="red"),))
    assert score(red, [thing("cat", color="red")]) and not score(red, [thing("cat", color="blue")])
    assert not score(red, [thing("bus", color="red")]) and not score(red, [])


def test_only_the_most_certain_objects_are_looked_at():
    # Red if `-item.score` becomes `item.score`, or [: wanted.count] goes.
    red = Prompt("colors", "", (Wanted("cat", color="red"),))
    pair = [thing("cat", color="red", score=0.5), thing("cat", color="blue", score=0.6)]
    assert not score(red, pair)
    assert score(red, [pair[0], thing("cat", color="blue", score=0.4)])


def test_all_pairs_must_lie_as_wanted():
    # Red if `any(relation not in` becomes `all(relation not in`, or a and b change places.
    prompt = Prompt("position", "", (Wanted("bus", 2), Wanted("cat", relation=("left of", 0))))
    buses = [thing("bus", 50), thing("bus", 90)]
    assert score(prompt, [*buses, thing("cat", 10)])
    assert not score(prompt, [*buses, thing("cat", 70)])
    assert not score(prompt, [*buses, thing("cat", 130)])


# ----------------------------------------------------------------------------------------------------- the prompts


def test_official_file_is_read(tmp_path):
    # Red if a tag is not mapped, the relation loses its index, or exclude is left out.
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, OFFICIAL)) + "\n\n")
    single, two, counting, position, attribution = geneval.read_prompts(path)
    assert single == Prompt("single_object", "a photo of a bench", (Wanted("bench"),))
    assert two.task == "two_objects" and two.include[1] == Wanted("tv remote")
    assert counting.include == (Wanted("bus", 3),) and counting.exclude == (Wanted("bus", 4),)
    assert position.include == (Wanted("dog"), Wanted("car", relation=("left of", 0)))
    assert attribution.task == "color_attribution" and attribution.include[0] == Wanted("pizza", color="red")
    assert score(position, [thing("car", 0), thing("dog", 60)]) and not score(
        position, [thing("car", 60), thing("dog")]
    )


BAD = {
    "no json": "{",
    "a list": "[1]",
    "no tag": json.dumps({"include": [{"class": "cat", "count": 1}], "prompt": "a cat"}),
    "unknown tag": json.dumps({**OFFICIAL[0], "tag": "texture"}),
    "nothing wanted": json.dumps({**OFFICIAL[0], "include": []}),
    "no count": json.dumps({**OFFICIAL[0], "include": [{"class": "cat"}]}),
    "count of 0": json.dumps({**OFFICIAL[0], "include": [{"class": "cat", "count": 0}]}),
    "relation to itself": json.dumps(
        {**OFFICIAL[3], "include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}
    ),
    "unknown relation": json.dumps(
        {**OFFICIAL[3], "include": [OFFICIAL[3]["include"][0], {"class": "cat", "count": 1, "position": ["near", 0]}]}
    ),
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_bad_lines_are_named(line, tmp_path):
    # Red if start=1 goes, KeyError is not caught, or range(index) becomes range(index + 1).
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(OFFICIAL[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 2 "):
        geneval.read_prompts(path)


def test_missing_and_empty_files_are_named(tmp_path):
    # Red if is_file() or `if not read` goes.
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        geneval.read_prompts(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl has no prompts"):
        geneval.read_prompts(tmp_path / "empty.jsonl")


def test_scene_prompts_are_held_out_and_even_over_tasks():
    # Red if held_out=True becomes False, the tasks do not take turns, or `% len(orders[task])` repeats too early.
    wanted = scene_prompts(60, seed=3)
    assert [prompt.task for prompt in wanted] == list(TASKS) * 10
    assert all(prompt in prompts(prompt.task, held_out=True) for prompt in wanted)
    for task in TASKS:
        of_task = [prompt.text for prompt in wanted if prompt.task == task]
        assert len(set(of_task)) == min(10, len(prompts(task, held_out=True)))
    assert wanted == scene_prompts(90, seed=3)[:60]
    assert wanted != scene_prompts(60, seed=4)


# ---------------------------------------------------------------------------------------------------- the pictures


@pytest.fixture
def stage(make_encoder, make_projector, make_decoder):
    parts = make_encoder(), make_projector(), make_decoder()
    return AutoEncoder(*parts, sampling=Sampling(2)).eval()


def test_pictures_do_not_depend_on_the_batch_size(stage):
    # Red if _noise is given `place` instead of `first + place`, or one generator serves a whole batch.
    wanted = scene_prompts(7)
    whole = geneval.draw(stage, wanted, seed=1, batch=7)
    assert whole.shape == (7, 3, IMAGE_SIZE, IMAGE_SIZE) and whole.std() > 0.01
    torch.testing.assert_close(geneval.draw(stage, wanted, seed=1, batch=3), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(geneval.draw(stage, wanted[:4], seed=1), whole[:4], atol=1e-4, rtol=0)


def test_the_same_prompt_gets_other_noise(stage):
    # Red if [seed, item] becomes [seed] or [item].
    same = scene_prompts(1) * 2
    first, second = geneval.draw(stage, same, seed=1)
    assert (first - second).abs().max() > 0.01
    assert (first - geneval.draw(stage, same, seed=2)[0]).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------- the suite


class FakeModel:
    """Draws the scene that each prompt asks for, or leaves the wanted object out of it."""

    device, decoder = torch.device("cpu"), SimpleNamespace(latent_shape=(1, 1, 1))

    def __init__(self, wanted, faults):
        self.scenes = {p.text: planted(p, f, np.random.default_rng(0)) for p, f in zip(wanted, faults, strict=True)}

    def read(self, texts):
        return texts

    def draw(self, texts, noise):
        return pictures([self.scenes[text] for text in texts])


def pictures(scenes):
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).float() / 255


def test_values_are_in_the_order_of_the_prompts():
    # Red if `first += len(images)` goes, or values of two tasks are mixed up.
    wanted = scene_prompts(24)
    faults = ["dropped" if index % 4 == 0 else None for index in range(24)]
    values = geneval.geneval(FakeModel(wanted, faults), wanted, SceneObjectDetector(), batch=5)
    expected = {task: [float(faults[i] is None) for i in range(t, 24, 6)] for t, task in enumerate(TASKS)}
    assert values == expected and list(values) == list(TASKS)


def test_overall_is_the_mean_of_the_tasks():
    # Red if all items are put in one pot, or the key "seeds" stays.
    values = {"single_object": [1.0] * 30, "position": [0.0, 1.0] * 5}
    summary = GenEval(SceneObjectDetector(), "").figures(values)
    assert summary["overall"]["mean"] == pytest.approx(0.75) and summary["overall"].keys() == {
        "mean",
        "low",
        "high",
        "n",
    }
    assert summary["position"]["mean"] == 0.5 and summary["position"]["n"] == 10 and summary["overall"]["n"] == 40


class Told(ObjectDetector):
    """Finds what it is told to."""

    def __init__(self, found, names=("cat",), colors=("red",)):
        super().__init__()
        self.found, self.names, self.colors, self.counting_threshold = found, names, colors, 0.9

    def detect(self, images):
        return [self.found] * len(images)


def test_counting_wants_more_certain_objects():
    # Red if `prompt.task` in judge becomes any other key, or > becomes <.
    two = [thing("cat", score=0.95), thing("cat", score=0.85)]
    wanted = [Prompt(task, "", (Wanted("cat", 2),)) for task in ("counting", "two_objects")]
    assert geneval.judge(Told(two), wanted, torch.zeros(2, 3, 8, 8)) == [False, True]


def test_a_detector_that_cannot_judge_the_prompts_is_refused():
    # Red if check is not called, or forgets `exclude`.
    cat = Prompt("single_object", "", (Wanted("cat", color="red"),), (Wanted("zebra"),))
    with pytest.raises(ValueError, match="Told does not know .'zebra'.*`names`"):
        geneval.geneval(None, [cat], Told([]))
    with pytest.raises(ValueError, match="color_model"):
        geneval.check(Told([], names=("cat", "zebra"), colors=()), [cat])
    geneval.check(Told([], names=("cat", "zebra")), [cat])


# ----------------------------------------------------------------------------------------- the judge's own accuracy


def test_the_judge_is_right_on_rendered_scenes():
    # Red if the cells of SceneObjectDetector are transposed, or `turn % 2` in _fault_of goes with the detector blind.
    values = instrument_accuracy(SceneObjectDetector(), 240, seed=1)
    assert {task: len(right) for task, right in values.items()} == dict.fromkeys(TASKS, 40)
    for task, right in values.items():
        assert np.mean(right) >= 0.97, (task, np.mean(right))


def test_a_blind_judge_is_found_out():
    # Red if all scenes are positives, or all have faults: then this detector would be right always, or every time.
    values = instrument_accuracy(Told([], names=SceneObjectDetector.names, colors=SceneObjectDetector.colors), 48)
    assert all(np.mean(right) == 0.5 for right in values.values())


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_fault_moves_the_tasks_that_it_breaks_and_no_other(fault):
    # Red if the color is not checked, or a task is added to or taken from BREAKS.
    wanted, scenes, broken = [], [], BREAKS.get(fault, ())
    for index, prompt in enumerate(scene_prompts(72, seed=2)):
        rng = np.random.default_rng(index)
        scene = planted(prompt, fault if prompt.task in broken else None, rng)
        if prompt.task not in broken and fault is not None:
            if (fault, prompt.task) == ("doubled", "position"):
                continue  # which of the two the detector is more certain of decides
            if not (options := faulty_scenes(scene, fault)):
                continue
            scene = options[rng.integers(len(options))]
        wanted.append(prompt)
        scenes.append(scene)
    said = geneval.judge(SceneObjectDetector(), wanted, pictures(scenes))
    for task in {prompt.task for prompt in wanted}:
        share = np.mean([right for right, prompt in zip(said, wanted, strict=True) if prompt.task == task])
        assert abs(share - (task not in broken)) <= 0.1, (task, share)


def test_planted_scenes_show_the_prompt_and_other_classes_beside():
    # Red if `others` keeps the classes of the prompt (then "a red cat" may be beside a blue cat), or nothing is beside.
    alone = 0
    for index, prompt in enumerate(scene_prompts(240)):
        scene = planted(prompt, None, np.random.default_rng(index))
        names = [item.name for item in scene.objects]
        assert all(names.count(entry.name) == entry.count for entry in prompt.include)
        assert len(names) <= 3 and score(prompt, perfect(scene))
        alone += len(names) == sum(entry.count for entry in prompt.include)
    assert 0.3 < alone / 240 < 0.9
