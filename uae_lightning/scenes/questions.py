"""Multiple-choice questions, answered by likelihood: a question is the beginning of a caption, its options are ways to
go on, and the answer is the option to which the encoder gives the highest probability, given the picture.

    class        ... at the top left there is a large red ___
    color        ... we see a large ___ cat
    size         ... we see a ___ red cat
    position     ... we see a large red cat at the ___
    background   the background is ___
    count        this scene shows ___
    relation     ... the red cat is ___ the blue bus            left of or right of, the two in different rows

This asks for what an encoder knows, whether it is its habit to say so or not. The dots are the complete caption up to
there: its grammar lists objects row by row, and an encoder that knows no other order takes an object named out of turn
for the first one (positions of later objects: 22% right without the dots, 97% with them; ours, 125 scenes).

Count and relation are what the reward is indifferent to: both follow from the objects and positions that a caption
lists, by which the decoder draws, so that nothing is gained by wording them. What RL lets go shows there first, as far
as the encoder knew it before: the embedded one counts (94% of 128 scenes), but hardly tells left from right (45 to 69%
of 35 to 60). Relations can be answered from the listing alone; blind chance is 1/2, as the order of rows tells nothing
of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor

from uae_lightning.evaluation.statistics import Figures, Items
from uae_lightning.evaluation.suite import Group, Row, Subject, Suite
from uae_lightning.interfaces import Encoder
from uae_lightning.scenes.captions import COUNTS, write_caption
from uae_lightning.scenes.perception import without_scenes
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, POSITIONS, SIZES, Scene, SceneObject
from uae_lightning.types import Captions

KINDS = ("class", "color", "size", "position", "background", "count", "relation")


@dataclass(frozen=True)
class Question:
    kind: str
    prefix: str
    options: tuple[str, ...]  # each goes on after the prefix and a blank; none is the beginning of another
    answer: int  # index of the right option


class Questions(Suite):
    """Share of questions that the encoder answers rightly, by kind; "overall" is a share for each scene."""

    about = "questions about the scene, answered by likelihood"

    def missing(self, data: L.LightningDataModule) -> str | None:
        return without_scenes(data)

    def measure(self, subject: Subject) -> Items:
        trip = subject.round_trip
        scenes = [subject.data.scene(key) for key in trip.keys]
        return questions_accuracy(subject.model.encoder, trip.originals, scenes, seed=subject.seed)

    def groups(self, figures: Figures) -> list[Group]:
        rows = (Row("overall", "questions answered"), Row("count", "of these: how many objects"))
        return [Group("Answering", "share of questions about a picture that are answered rightly", rows)]


# ---------------------------------------------------------------------------------------------------- asking


def questions_accuracy(
    encoder: Encoder, images: Tensor, scenes: list[Scene], *, seed: int = 0, batch_size: int = 128
) -> Items:
    """Kind -> 1 or 0 for each of its questions, in the order of the scenes; overall -> the share of each scene.

    Args:
        encoder: knows the language of `data.captions`.
        images: [B, 3, H, W] the pictures of the scenes.
        scenes: B scenes.
        seed: of the choice of objects; the same seed asks the same questions.
        batch_size: captions in a forward pass.
    """
    of_scenes = [scene_questions(scene, np.random.default_rng([seed, row])) for row, scene in enumerate(scenes)]
    questions = [question for asked in of_scenes for question in asked]
    pictures = [row for row, asked in enumerate(of_scenes) for _ in asked]
    answers = answer(encoder, images, questions, pictures, batch_size=batch_size)
    right = [float(given == question.answer) for given, question in zip(answers, questions, strict=True)]

    values = {kind: [hit for hit, question in zip(right, questions, strict=True) if question.kind == kind]
              for kind in KINDS}  # fmt: skip
    rows = np.array(pictures)
    return values | {"overall": [float(np.array(right)[rows == row].mean()) for row in range(len(scenes))]}


def scene_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """A question of each kind that has exactly one right option in `scene`.

    Those about an object need one whose class is there once; relations need two such that are neighbours in the list of
    objects, in different rows and columns.
    """
    grounds = tuple(BACKGROUNDS)
    questions = [
        Question("background", "the background is", grounds, grounds.index(scene.background)),
        Question("count", "this scene shows", COUNTS, len(scene.objects) - 1),
    ]
    unique = [a for a in scene.objects if sum(b.name == a.name for b in scene.objects) == 1]
    if unique:
        questions += _about(unique[rng.integers(len(unique))], scene, rng)
    pairs = [
        (a, b)
        for a, b in zip(scene.objects, scene.objects[1:], strict=False)
        if a in unique and b in unique and a.cell // 3 != b.cell // 3 and a.cell % 3 != b.cell % 3
    ]
    return questions + ([_relation(*pairs[rng.integers(len(pairs))], scene, rng)] if pairs else [])


def _about(item: SceneObject, scene: Scene, rng: np.random.Generator) -> list[Question]:
    size, color, name = item.size, item.color, item.name
    noun = f"a {size} {color} {name}"
    placed, seen = (_caption(scene, opening, rng) for opening in ("the background is", "this scene shows"))
    at, we_see = placed[: placed.index(noun)], seen[: seen.index(noun)]
    sizes, colors = (tuple(names) for names in (SIZES, COLORS))
    return [
        Question("class", f"{at}a {size} {color}", CLASSES, CLASSES.index(name)),
        Question("color", f"{we_see}a {size}", tuple(f"{x} {name}" for x in colors), colors.index(color)),
        Question("size", f"{we_see}a", tuple(f"{x} {color} {name}" for x in sizes), sizes.index(size)),
        Question("position", f"{we_see}{noun} at the", POSITIONS, item.cell),
    ]


def _relation(a: SceneObject, b: SceneObject, scene: Scene, rng: np.random.Generator) -> Question:
    sentences = _caption(scene, "this scene shows", rng).removesuffix(" .").split(" . ")
    listing = " . ".join(sentence for sentence in sentences if not sentence.startswith("the "))
    options = tuple(f"{relation} the {b.color} {b.name}" for relation in ("left of", "right of"))
    return Question("relation", f"{listing} . the {a.color} {a.name} is", options, int(a.cell % 3 > b.cell % 3))


def _caption(scene: Scene, opening: str, rng: np.random.Generator) -> str:
    """A complete caption in the style that begins with `opening`."""
    while not (text := write_caption(scene, rng)).startswith(opening):
        pass
    return text


# ---------------------------------------------------------------------------------------------------- answering


def answer(
    encoder: Encoder, images: Tensor, questions: list[Question], pictures: list[int], *, batch_size: int = 128
) -> list[int]:
    """The index of the most probable option of every question; arguments as of `option_logprobs`."""
    logprobs = option_logprobs(encoder, images, questions, pictures, batch_size=batch_size)
    return [int(np.argmax(options)) for options in logprobs]


@torch.no_grad()
def option_logprobs(
    encoder: Encoder, images: Tensor, questions: list[Question], pictures: list[int], *, batch_size: int = 128
) -> list[list[float]]:
    """log p(prefix, option | picture) of every option of every question, in nats.

    It is summed over all tokens: options of several tokens compete fairly as long as none is the beginning of another.

    Args:
        images: [B, 3, H, W].
        questions: Q questions, whose options may be of any number and length.
        pictures: of each of them, the row of `images` it is about.
        batch_size: captions in a forward pass.
    """
    scores = [[0.0] * len(question.options) for question in questions]
    stems = sorted(_stems(encoder, questions), key=lambda stem: len(stem.tokens))  # alike in length: little padding
    for start in range(0, len(stems), batch_size):
        chunk = stems[start : start + batch_size]
        rows = torch.tensor([pictures[stem.question] for stem in chunk], device=images.device)
        logits = encoder.token_logits(images[rows], _padded(chunk, images.device))
        for stem, table in zip(chunk, logits, strict=True):  # table [T, V]
            logprobs = table[: len(stem.tokens)].float().log_softmax(-1)
            so_far = logprobs[range(len(stem.tokens) - 1), stem.tokens[:-1]].sum()
            of_last = (so_far + logprobs[-1, list(stem.options.values())]).tolist()
            for option, logprob in zip(stem.options, of_last, strict=True):
                scores[stem.question][option] = logprob
    return scores


@dataclass
class _Stem:
    """A prefix with all tokens of an option but the last. Options that differ in their last token alone, as colors do,
    share a stem, and so a forward pass."""

    question: int
    tokens: list[int]  # with the last token of one of them, which no prediction depends on
    options: dict[int, int]  # index of an option -> its last token


def _stems(encoder: Encoder, questions: list[Question]) -> list[_Stem]:
    texts = [f"{question.prefix} {option}" for question in questions for option in question.options]
    captions = encoder.tokenize(texts)
    rows = iter(zip(captions.tokens.cpu(), captions.mask.cpu(), strict=True))
    stems: dict[tuple[int, ...], _Stem] = {}
    for number, question in enumerate(questions):
        for option in range(len(question.options)):
            row, mask = next(rows)
            tokens = row[mask].tolist()
            stem = stems.setdefault((number, *tokens[:-1]), _Stem(number, tokens, {}))
            stem.options[option] = tokens[-1]
    return list(stems.values())


def _padded(stems: list[_Stem], device: torch.device) -> Captions:
    lengths = torch.tensor([len(stem.tokens) for stem in stems], device=device)
    longest = int(lengths.max())
    tokens = torch.tensor([stem.tokens + [0] * (longest - len(stem.tokens)) for stem in stems], device=device)
    return Captions([""] * len(stems), tokens, torch.arange(longest, device=device) < lengths[:, None])
