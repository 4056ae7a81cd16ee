"""OcrReward: is the text that a prompt quotes written in the picture? Flow-GRPO's reward of text rendering
(arXiv 2505.05470): 1 - edit distance / length of the quoted text, 0 at least."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from uae_lightning.data.images import as_picture
from uae_lightning.interfaces import Reward
from uae_lightning.paths import weightless
from uae_lightning.types import RewardInput, RewardOutput
from uae_lightning.usage import UsageError

MARKS = ['""', "\u201c\u201d", "\u201e\u201c", "\u300c\u300d", "\u00ab\u00bb"]  # that open and close a quotation
QUOTED = re.compile("|".join(f"{opens}([^{closes}]+){closes}" for opens, closes in MARKS))


class OcrReward(Reward):
    """Agreement of what an OCR model reads in a picture with what its prompt puts in quotation marks, in [0, 1]. Case
    and blanks do not count, nor does other writing around text that stands there whole. No original is needed.

    The reader is RapidOCR on ONNX Runtime (the extra `ocr`; detection and recognition of PP-OCR, 31 MB, inside its
    wheel): Latin letters, Chinese and Japanese, by the CPU. Other engines want a compiled binary (Tesseract) or
    torchvision (EasyOCR, docTR).

    Parts, each [N]: ocr, read (1 where all that is quoted was read, else 0).

    Raises:
        UsageError: the packages are not installed.
        ValueError: a prompt quotes nothing.
    """

    needs_originals = False

    def __init__(self) -> None:
        super().__init__()
        self.reader = None if weightless() else reader()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        device = inputs.reconstructions.device
        if self.reader is None:  # a plan counts nothing of it
            return scored(torch.zeros(len(inputs.captions), device=device))
        wanted = [quotations(text) for text in inputs.captions]
        found = [self.read(image) for image in inputs.reconstructions]
        values = [agreement(texts, text) for texts, text in zip(wanted, found, strict=True)]
        return scored(torch.tensor(values, device=device))

    def read(self, image: Tensor) -> str:
        """All text in a picture [3, H, W], from the top to the bottom."""
        levels = np.asarray(as_picture(image))
        return " ".join(self.reader(levels[:, :, ::-1]).txts or ())  # BGR, as OpenCV has it


def reader():
    """Raises UsageError where it is not installed."""
    try:
        from rapidocr import RapidOCR  # optional
    except ImportError as error:
        raise UsageError(
            f"OcrReward reads pictures with rapidocr and onnxruntime ({error}): pip install 'uae-lightning[ocr]'"
        ) from error
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,  # text upside down is no text as it was asked for
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
    )


def scored(total: Tensor) -> RewardOutput:
    return RewardOutput(total, {"ocr": total, "read": (total == 1).float()})


def quotations(prompt: str) -> list[str]:
    """What stands between double quotation marks; a ValueError where nothing does."""
    found = [bare(next(filter(None, groups))) for groups in QUOTED.findall(prompt)]
    if not any(found):
        raise ValueError(
            f"OcrReward: nothing is quoted in the text {prompt[:80]!r}: write what the picture is to say in double "
            'quotation marks, as in: a sign that says "open"'
        )
    return [text for text in found if text]


def bare(text: str) -> str:
    return "".join(text.lower().split())


def agreement(wanted: list[str], read: str) -> float:
    """1 where each of the texts stands in what was read, else 1 - the edit distance of those that do not from the rest
    of it, in letters of all texts; of a single text that is Flow-GRPO's."""
    rest, missing = bare(read), set(range(len(wanted)))
    for index in sorted(missing, key=lambda index: -len(wanted[index])):
        before, there, after = rest.partition(wanted[index])
        if there:
            rest = before + after
            missing.remove(index)
    left = "".join(wanted[index] for index in sorted(missing))
    return 1 - min(edit_distance(left, rest), len(left)) / len("".join(wanted))


def edit_distance(a: str, b: str) -> int:
    """Least number of letters inserted, deleted or replaced that turn one into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]
