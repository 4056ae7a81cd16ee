"""What an encoder is asked, and for which text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

# released code of UAE: the prompt P of Unified-GRPO and the system line of the decoder's template
CAPTION_SYSTEM = "You are an expert vision-language model."
CAPTION_PROMPT = (
    "Your task is: Given an input image, generate a textual description of the image. If there is text in the image, "
    "transcribe it inside double quotes. Now, carefully analyze the input image and output the full description."
)
GENERATE_SYSTEM = "You are a helpful assistant."
REWRITE_PROMPT = (  # ours
    "A picture is to be drawn from the short prompt below. Describe that picture in full: each object that the prompt "
    "asks for with its color, size and place, then the background and the light. Leave out no object of the prompt and "
    "bring in no other. Answer with the description alone."
)
PLACE = "\N{OBJECT REPLACEMENT CHARACTER}"  # of the text in the "generate" template


@dataclass(frozen=True)
class Asked:
    """Chat turns that ask for what B prompts leave open."""

    tokens: Tensor  # [B, L], padded on the left: a state of linear attention ends with the last token, not with padding
    mask: Tensor  # [B, L] bool

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows) -> Asked:
        return Asked(self.tokens[rows], self.mask[rows])


def turns(system: str, role: str, content: str | list[dict[str, str]]) -> list[dict[str, Any]]:
    """A turn of that role; an empty system line is left out."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": role, "content": content}]
