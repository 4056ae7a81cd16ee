"""Prompts about scenes: what training may read, what it must not, and that every prompt is true of its scene."""

import itertools
import re

import numpy as np
import pytest

from uae_lightning.evaluation.geneval import TASKS, score
from uae_lightning.scenes import prompts as module
from uae_lightning.scenes.captions import COUNTS, PLURALS, RELATIONS, vocabulary, write_caption
from uae_lightning.scenes.geneval import perfect
from uae_lightning.scenes.prompts import is_held_out, prompts, stated_objects, training_prompt, true_relations
from uae_lightning.scenes.scene import CLASSES, COLORS, POSITIONS, sample_scene

CLASS, COLOR, PLACE = ("|".join(names) for names in (CLASSES, COLORS, sorted(POSITIONS, key=len, reverse=True)))
NAMED = re.compile(rf"a (?:({COLOR}) )?({CLASS}) at the ({PLACE})")
RELATED = re.compile(rf"a ({CLASS}) ({'|'.join(RELATIONS)}) a ({CLASS}) at the ({PLACE})")
COUNTED = re.compile(rf"({'|'.join(COUNTS)}) ({'|'.join(PLURALS.values())}) at (.*)")
PER_TASK = [(task, held_out) for task in TASKS for held_out in (True, False)]


@pytest.fixture(scope="module")
def drawn():
    """2000 scenes of the training stream that have a prompt: (scene, text, what the text is to ask for)."""
    made = {}

    def recorded(*args, make=module.make_prompt):
        prompt = make(*args)
        return made.setdefault(prompt.text, prompt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_prompt", recorded)
        scenes = [sample_scene("train", 0, index, max_objects=3 + index % 2) for index in range(2000)]
        texts = [training_prompt(scene, np.random.default_rng(index)) for index, scene in enumerate(scenes)]
    return [(scene, text, made[text]) for scene, text in zip(scenes, texts, strict=True) if text is not None]


def test_training_never_reads_a_held_out_prompt(drawn):
    # Red if `if not is_held_out(text)` goes from training_prompt, or < 64 becomes > 64 in is_held_out (the shares).
    listed = {prompt.text for task in TASKS for prompt in prompts(task, held_out=True)}
    read = {text for _, text, _ in drawn}
    assert not read & listed and not any(is_held_out(text) for text in read)
    assert {prompt.task for _, _, prompt in drawn} == set(TASKS)


def test_training_prompts_name_all_objects_and_nothing_else(drawn):
    # Red if {item.position} in make_prompt becomes a fixed place, b and a change places in the text of position, or
    # _fits lets a second class into counting.
    for scene, text, prompt in drawn:
        truth = sorted((item.name, item.position) for item in scene.objects)
        if prompt.task == "counting":
            count, plural, places = COUNTED.search(text).groups()
            said = [
                (item.name, place.removeprefix("the ")) for item in scene.objects[:1] for place in places.split(" and ")
            ]
            assert PLURALS[scene.objects[0].name] == plural and COUNTS[len(scene.objects) - 1] == count
        elif prompt.task == "position":
            a, relation, b, place = RELATED.search(text).groups()
            first, second = sorted(scene.objects, key=lambda item: item.name == b)
            assert (first.name, true_relations(first, second)) == (a, [relation])  # neighbors
            said = [(a, first.position), (b, place)]
        else:
            said = [(name, place) for _, name, place in NAMED.findall(text)]
            colors = {(item.color, item.name) for item in scene.objects}
            assert all(color == "" or (color, name) in colors for color, name, _ in NAMED.findall(text))
            assert all(
                bool(color) == (prompt.task in ("colors", "color_attribution")) for color, _, _ in NAMED.findall(text)
            )
        assert sorted(said) == truth, (text, scene)


def test_training_prompts_ask_for_what_is_in_the_scene(drawn):
    # Red if Wanted(name, count + 1) becomes Wanted(name, count), Wanted(b.name) becomes Wanted(a.name), or item.color
    # becomes objects[0].color.
    for scene, text, prompt in drawn:
        assert score(prompt, perfect(scene)), (text, scene)


@pytest.mark.parametrize(("task", "held_out"), PER_TASK)
def test_listed_prompts_are_of_their_task_and_on_their_side(task, held_out):
    # Red if `== held_out` becomes `!= held_out`.
    listed = prompts(task, held_out=held_out)
    texts = [prompt.text for prompt in listed]
    assert 10 <= len(texts) == len(set(texts)) <= module.LISTED
    assert {prompt.task for prompt in listed} == {task}
    assert all(is_held_out(text) == held_out for text in texts)


def test_the_list_is_always_the_same():
    # Red if the generator in prompts() is given no seed.
    assert prompts.__wrapped__("colors", held_out=True) == prompts("colors", held_out=True)


def test_a_quarter_is_held_out():
    # Red if < 64 becomes < 128.
    nouns = [f"a {color} {name} at the {place}" for color, name, place in itertools.product(COLORS, CLASSES, POSITIONS)]
    share = np.mean([is_held_out(f"a picture of {noun}") for noun in nouns])
    assert 0.2 < share < 0.3


def test_every_word_is_known_to_the_tokenizer(drawn):
    # Red if "picture" becomes "photo".
    texts = {text for _, text, _ in drawn} | {p.text for task, side in PER_TASK for p in prompts(task, held_out=side)}
    assert {word for text in texts for word in text.split()} <= set(vocabulary())


def test_unknown_task_is_refused():
    # Red if the check goes.
    with pytest.raises(ValueError, match="two_objects"):
        prompts("two_object", held_out=True)


CUPS = {0: "cup", 4: "cat", 6: "cup"}


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("red cat , car bottom left", {6: "car"}),
        ("a picture of a cat right of a bus at the center", {4: "bus", 5: "cat"}),
        ("a picture of a cat above a bus at the bottom right", {5: "cat", 8: "bus"}),
        ("a picture of a cat above a bus at the top left", {0: "bus"}),  # as captions of the web can say
        ("a large cat at the center . the cat is left of the bus .", {4: "cat"}),
        ("a picture of a cat at the center and two cups at the top left and the bottom left", CUPS),
        ("a picture of two objects on sea . two red cats are at the top left and the center .", {0: "cat", 4: "cat"}),
    ],
)  # fmt: skip
def test_texts_state_objects_in_cells(text, cells):
    # red if down and right change places, a cell outside of the grid wraps around, or the places of two nouns are mixed
    assert {cell: item.name for cell, item in stated_objects(text).items()} == cells


def test_prompts_and_captions_state_all_objects_of_their_scene(drawn):
    # red if `found[1]` of a placed noun becomes None (colors), or `"object" in text` goes (captions of three objects)
    for scene, text, wanted in drawn:
        truth = {item.cell: (item.name, item.color) for item in scene.objects}
        said = {cell: (item.name, item.color) for cell, item in stated_objects(text).items()}
        colored = wanted.task in ("colors", "color_attribution")
        assert said == {cell: (name, color if colored else None) for cell, (name, color) in truth.items()}
        caption = write_caption(scene, np.random.default_rng(0), level="long")
        assert {cell: (item.name, item.color) for cell, item in stated_objects(caption).items()} == truth
