"""CaptionQA: can questions about a picture be answered from its caption alone? CapRL's reward (arXiv 2509.22647).

A language model that never sees the picture reads the caption and multiple-choice questions; the share that it answers
rightly is what the caption is worth to a reader. The questions come with the data.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from uae_lightning.models.adapters import to_dtype
from uae_lightning.models.loading import load, reading
from uae_lightning.paths import resolve, weightless
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.vision_features import FrozenReward
from uae_lightning.types import RewardInput, RewardOutput

FILES = ["*.json", "*.safetensors", "*.model", "merges.txt", "*.jinja"]
LETTERS = string.ascii_uppercase
TURN = (
    "This is a description of a picture:\n{caption}\n\n"
    "Answer a question about the picture from the description alone.\n"
    "{question}\n{options}\nAnswer with the letter of the right option and with nothing else."
)


@dataclass(frozen=True)
class Question:
    text: str
    options: tuple[str, ...]  # as they are shown: in an order of their own, the same for all captions
    answer: int  # index of the right one

    def asked_of(self, caption: str) -> str:
        options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False))
        return TURN.format(caption=caption, question=self.text, options=options)


@checked
class CaptionQA(FrozenReward):
    """Share of the questions about a picture that a language model answers rightly by the caption, in [0, 1]: the
    letter it finds most probable in one forward pass, no text is sampled. Only captions count: it teaches an encoder.

    The data give each picture a list of {"question": ..., "options": [...], "answer": one of the options} in one of
    their `metadata_columns`.

    Parts, each [N]: answered (that share), confidence (mean probability of the right options among the options).

    Args:
        model: hub id or local folder of a language model of transformers with a chat template.
        column: of the data, which holds the questions.
        total: the part that is maximised. "answered" is CapRL's; "confidence" tells captions apart of which all
            answers are right, or none.
        dtype: of its weights.
        micro_batch: questions at a time.

    Raises:
        ValueError: a picture has no questions, or one is none, or the model has no chat template or
            no tokens for letters.
    """

    needs_originals = False

    def __init__(
        self,
        model: str = "Qwen/Qwen2.5-3B-Instruct",
        column: str = "questions",
        total: Literal["answered", "confidence"] = "answered",
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        micro_batch: Count = 16,
    ) -> None:
        super().__init__()
        self.column, self.total, self.micro_batch = column, total, micro_batch
        folder = resolve(model, FILES)
        self.network = load(AutoModelForCausalLM, folder, to_dtype(dtype))
        self.planned = weightless()  # what is computed depends on the questions: a plan counts weights alone
        if not self.planned:
            with reading("tokenizer", folder):
                self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            if not self.tokenizer.chat_template:
                raise ValueError(f"CaptionQA: {folder} has no chat template: name an instruct model")
            self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
            letters = [self.tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
            if not all(len(tokens) == 1 for tokens in letters):
                raise ValueError(f"CaptionQA: the tokenizer in {folder} cuts single letters: name another model")
            self.letters = [tokens[0] for tokens in letters]
        self.freeze()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        device, count = inputs.reconstructions.device, len(inputs.captions)
        if self.planned:
            nothing = torch.zeros(count, device=device)
            return RewardOutput(nothing, {"answered": nothing, "confidence": nothing})
        questions = [questions_in(row, self.column) for row in inputs.metadata or [{}] * count]
        asked = [(row, one) for row, of_picture in enumerate(questions) for one in of_picture]
        probabilities = self.probabilities([(one, inputs.captions[row]) for row, one in asked])
        values = torch.zeros(2, count)
        for (row, one), given in zip(asked, probabilities, strict=True):
            right = torch.tensor([float(given.argmax() == one.answer), given[one.answer].item()])
            values[:, row] += right / len(questions[row])
        parts = dict(zip(("answered", "confidence"), values.to(device), strict=True))
        return RewardOutput(parts[self.total], parts)

    def probabilities(self, asked: list[tuple[Question, str]]) -> list[Tensor]:
        """Of the options of each question, read beside its caption; what is asked twice is answered once."""
        different = sorted(set(asked), key=lambda pair: len(pair[0].text) + len(pair[1]))  # alike in length
        known: dict[tuple[Question, str], Tensor] = {}
        for start in range(0, len(different), self.micro_batch):
            pairs = different[start : start + self.micro_batch]
            logits = self.next_letter([question.asked_of(caption) for question, caption in pairs])
            for pair, row in zip(pairs, logits, strict=True):
                known[pair] = row[: len(pair[0].options)].softmax(0)
        return [known[pair] for pair in asked]

    def next_letter(self, turns: list[str]) -> Tensor:
        """Logits [n, 26] of the letters as the beginning of an answer, on the CPU."""
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for turn in turns
        ]
        device = next(self.network.parameters()).device
        tokens = self.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(device)
        mask = tokens["attention_mask"]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.network(
            input_ids=tokens["input_ids"], attention_mask=mask, position_ids=places, logits_to_keep=1, use_cache=False
        ).logits
        return logits[:, -1, self.letters].float().cpu()


def questions_in(row: dict[str, Any], column: str) -> list[Question]:
    """Of a row of the data; raises ValueError where there is none, or one is none."""
    found = row.get(column)
    if not isinstance(found, list) or not found:
        raise ValueError(
            f"CaptionQA: a picture has no questions under {column!r}: give each row of the data a list of them there, "
            f"and name it in data.init_args.metadata_columns: [{column}]"
        )
    return [question_of(one) for one in found]


def question_of(row: Any) -> Question:
    """The options in an order that depends on the question alone: the right one must not always be the first."""
    row = row if isinstance(row, dict) else {}
    text, options, answer = row.get("question"), row.get("options"), row.get("answer")
    texts = [text, *(options if isinstance(options, list) else [])]
    if not all(isinstance(one, str) for one in texts) or not 2 <= len(texts) - 1 <= len(LETTERS):
        few = f"a question needs a text and 2 to {len(LETTERS)} texts as options"
        raise ValueError(f"CaptionQA: {few}, got {row}"[:200])
    if texts[1:].count(answer) != 1:
        raise ValueError(f"CaptionQA: the answer must be one of the options, got {answer!r} for {text!r}"[:200])
    shown = random.Random(text).sample(options, len(options))
    return Question(text, tuple(shown), shown.index(answer))
