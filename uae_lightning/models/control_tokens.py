"""Control tokens, such as `<|im_end|>`, that stand in the texts of others: they are read as the characters they are."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase


class ForeignText:
    """Texts that come from captions, prompts and files, for one tokenizer.

    Args:
        tokenizer: what it calls special are the control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(special.values(), key=len, reverse=True)
        self.ids, self.unknown = special.keys() - {tokenizer.unk_token_id}, tokenizer.unk_token_id
        self.control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def with_control(self, texts: list[str]) -> int:
        """How many of the texts hold a control token."""
        return sum(self.control.search(text) is not None for text in texts)

    def encode(self, texts: list[str], before: str = "", after: str = "") -> list[list[int]]:
        """Token ids of `before + text + after`, in which the text has no control tokens.

        Between the control tokens around it, the text is read as one with what stands beside it: the ids of texts
        without control tokens are those of the whole.
        """
        last, first = self._beside(before, after)
        head, tail = self._ids([before[:last], after[first:]])
        bodies = self._ids([before[last:] + text + after[:first] for text in texts], split_special_tokens=True)
        return [[*head, *map(self._of_text, body), *tail] for body in bodies]

    def spans(self, text: str, before: str = "", after: str = "") -> list[tuple[int, int]]:
        """From and up to which letter of the text each of these tokens stands; (0, 0) for those around it."""
        last, first = self._beside(before, after)
        head, tail = self._ids([before[:last], after[first:]])
        read = self.tokenizer(
            before[last:] + text + after[:first], add_special_tokens=False, split_special_tokens=True,
            return_offsets_mapping=True,
        )  # fmt: skip
        shift, nothing = len(before) - last, (0, 0)
        within = [(max(start - shift, 0), min(end - shift, len(text))) for start, end in read["offset_mapping"]]
        body = [(start, end) if start < end else nothing for start, end in within]
        return [*[nothing] * len(head), *body, *[nothing] * len(tail)]

    def _beside(self, before: str, after: str) -> tuple[int, int]:
        """Where the last control token before a text ends, and where the first behind it starts."""
        last = max((match.end() for match in self.control.finditer(before)), default=0)
        next_ = self.control.search(after)
        return last, next_.start() if next_ else len(after)

    def _of_text(self, id_: int) -> int:
        """Unknown, where control tokens are words of the vocabulary too, as in the tokenizer of the scenes."""
        return self.unknown if id_ in self.ids else id_

    def _ids(self, texts: list[str], **options: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
