"""Texts of a given length, for models that are planned without their tokenizer."""

from __future__ import annotations

import torch

from uae_lightning.models.control_tokens import ForeignText
from uae_lightning.models.prompts import CAPTION_PROMPT, CAPTION_SYSTEM, GENERATE_SYSTEM, PLACE
from uae_lightning.models.qwen_vl import QwenVLEncoder

LETTERS_PER_TOKEN = 4  # of English prose; the prompts are all that is estimated by it
TURN = "x" * 5 * LETTERS_PER_TOKEN  # <|im_start|>, role, newline, <|im_end|>, newline


def caption(tokens: int, number: int = 0) -> str:
    """A text that is `tokens` long and, unless very short, another one for each number: equal ones are drawn once."""
    return f"{number:06d}".ljust(tokens * LETTERS_PER_TOKEN, "x")[: tokens * LETTERS_PER_TOKEN]


class Tokens(dict):
    def to(self, device: torch.device) -> Tokens:
        return self


class StandInTokenizer:
    """One token per four letters, and one per picture placeholder; markup as in Qwen's chat template."""

    eos_token_id = pad_token_id = unk_token_id = 0
    added_tokens_decoder: dict = {}

    def __init__(self, picture_id: int) -> None:
        self.picture_id = picture_id

    def convert_ids_to_tokens(self, index: int) -> str:
        return PLACE

    def apply_chat_template(self, messages: list[dict], **options: object) -> str:
        contents = [message["content"] for message in messages]
        texts = [content if isinstance(content, str) else self._join(content) for content in contents]
        return "".join(text + TURN for text in [*texts, ""])

    def _join(self, content: list[dict]) -> str:
        return "".join(PLACE if part["type"] == "image" else part["text"] for part in content)

    def __call__(self, texts: str | list[str], **options: object) -> Tokens:
        rows = [self._encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if "return_tensors" not in options:
            return Tokens(input_ids=rows)
        length = max(map(len, rows))
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        ids = [row + [0] * (length - len(row)) for row in rows]
        return Tokens(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))

    def _encode(self, text: str) -> list[int]:
        pictures = text.count(PLACE)
        words = -(-(len(text) - pictures) // LETTERS_PER_TOKEN)
        return [1] * (words // 2) + [self.picture_id] * pictures + [1] * (words - words // 2)

    def batch_decode(self, tokens: torch.Tensor, **options: object) -> list[str]:
        return [caption(tokens.shape[1])] * len(tokens)


class FullLength:
    """In place of the tokenizer of a CLIP, which pads to all places."""

    def __call__(self, texts: list[str], *, max_length: int, **options: object) -> Tokens:
        return Tokens(input_ids=torch.zeros(len(texts), max_length, dtype=torch.long))


def give_text(encoder: QwenVLEncoder, options: dict) -> None:
    """What `QwenVLEncoder` loads beside its weights; `options` are those of the YAML."""
    encoder.tokenizer = StandInTokenizer(encoder.model.config.image_token_id)
    encoder.preprocessor = encoder.stand_in_preprocessor()
    system, prompt = options.get("caption_system", CAPTION_SYSTEM), options.get("caption_prompt", CAPTION_PROMPT)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    turns = [{"content": system}] if system else []
    encoder.prompt = encoder.tokenizer.apply_chat_template([*turns, {"content": content}])
    encoder.generate_system = options.get("generate_system", GENERATE_SYSTEM)
    encoder.ends, encoder.pad = [0], 0
    encoder.foreign_text = ForeignText(encoder.tokenizer)
