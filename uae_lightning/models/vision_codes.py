"""VisionCodes: an encoder whose language is a codebook. What a vision tower sees is quantized, a code for each place.

The rival to text as a bottleneck (VQRAE, arXiv 2511.23386, quantizes the features of a pretrained vision encoder). A
"caption" is a line of words such as "v17 v3 v981", so that stages, rewards and evaluations work as with any encoder;
what asks for a language (prompts, questions, perception) does not.

With a second level each place has two words, of codebooks of their own (DualToken, arXiv 2503.14324): what the tower
says to the language model, and what one of its shallow blocks still knows of the pixels.

B pictures   K places   M levels   T = K M words, those of a place next to each other   V words of all codebooks
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.interfaces import CodeEncoder
from uae_lightning.models.loading import load_saved, read_object
from uae_lightning.models.quantizers import Quantizer
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.seeing import Seen
from uae_lightning.models.weight_files import seal
from uae_lightning.parallel.collectives import gathered
from uae_lightning.paths import resolve, weightless
from uae_lightning.ranges import Count, Natural, checked
from uae_lightning.types import Captions, Learning

WORD = re.compile(r"v(\d+)")


@checked
@dataclass
class Detail:
    """A second level of codes.

    Args:
        layer: block of the vision tower, from 0, whose output is quantized (DualToken: 6 of 27).
        quantizer: its codebook, whose words come after those of the first one.
    """

    layer: Natural
    quantizer: Quantizer


@checked
class VisionCodes(CodeEncoder):
    """The vision tower of a vision-language model, frozen, and a quantizer of its features.

    Args:
        vision: whose vision tower sees; its language model is dropped.
        quantizer: the codebook of what the tower gives.
        places: features of a picture: merged patches of the tower at the decoder's size and the tower's `max_pixels`.
        path: folder that `save` wrote, whose number of codes counts more than the quantizer's; None starts anew.
        detail: a second level, whose vectors stand beside the first one's by channel, as in DualToken; None: there is
            one. `hidden_size` is then the sum of both widths.

    Raises:
        FileNotFoundError: `path` holds no codebook.
        ValueError: what it holds is damaged, or of another quantizer, level or number of places.
    """

    def __init__(
        self,
        vision: QwenVLEncoder,
        quantizer: Quantizer,
        places: Count,
        path: str | None = None,
        detail: Detail | None = None,
    ) -> None:
        super().__init__()
        self.vision = vision.requires_grad_(False)
        vision.drop_language()
        self.count, self.layer = int(places), None if detail is None else int(detail.layer)
        self.quantizer, self.detail = quantizer, None if detail is None else detail.quantizer
        self.widths = [vision.hidden_size, *([] if detail is None else [vision.block_width(detail.layer)])]
        if path is not None:
            saved = self._saved(resolve(path))
            for one, codes in zip(self.quantizers, (saved, saved.get("detail")), strict=False):
                one.resize(codes["codes"])
        for one, width in zip(self.quantizers, self.widths, strict=True):
            one.build(width)
        self.hidden_size = sum(one.output_size for one in self.quantizers)
        self.where = nn.Parameter(0.02 * torch.randn(self.count, self.hidden_size))
        if path is not None:
            self._read(resolve(path))
        self.requires_grad_(False)

    @property
    def quantizers(self) -> list[Quantizer]:
        """Of each level."""
        return [self.quantizer, *([] if self.detail is None else [self.detail])]

    def _saved(self, folder: Path) -> dict[str, Any]:
        """The config of a saved codebook of this kind."""
        file = folder / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"no codebook in {folder}: {file} is missing, name the folder that a stage saved")
        found, wanted = read_object(file), without_codes(self.config)
        if without_codes(found) != wanted or not all(isinstance(one, int) for one in codes_in(found)):
            raise ValueError(f"{file} is of another codebook, {found}: the YAML describes {wanted}")
        return found

    def _read(self, folder: Path) -> None:
        if not weightless():
            load_saved(self, folder / "model.safetensors", "codebook", strict=False)

    @property
    def config(self) -> dict[str, Any]:
        described: list[dict[str, Any]] = [
            {"quantizer": type(one).__name__, "codes": one.size, "width": width}
            for one, width in zip(self.quantizers, self.widths, strict=True)
        ]
        detail = {} if self.detail is None else {"detail": {"layer": self.layer, **described[1]}}
        return {**described[0], "places": self.count, **detail}

    def blocks(self) -> list[nn.Module]:
        return self.vision.blocks()

    def adapt(self, learning: Learning) -> None:
        """The codebook as a whole; the vision tower stays frozen (VQRAE's first stage)."""
        super().adapt(learning)
        self.vision.requires_grad_(False)

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {
            "encoder": json.dumps(self.config),
            "encoder weights": digest_of(self, adapters),
            "encoder dtype and quantization": dtypes(self, adapters),
        }

    # ----------------------------------------------------------------- picture -> codes

    def see(self, images: Tensor) -> Seen:
        """The features of all levels beside each other, [B, K, sum of their widths]."""
        if self.layer is None:
            seen = self.vision.see(images)
        else:
            seen, block = self.vision.see_block(images, self.layer)
            seen = Seen(torch.cat([seen.features, block], -1), seen.grid)
        if (found := seen.features.shape[1]) != self.count:
            raise ValueError(
                f"the vision tower sees {found} places in pictures of {tuple(images.shape[2:])} pixels, places is "
                f"{self.count}: set model.autoencoder.encoder.places to {found}"
            )
        return seen

    def features(self, images: Tensor | Seen) -> list[Tensor]:
        """Of each level [B, K, E] float32, each feature of mean 0 and variance 1, without gradient. As the tower gives
        them they are so large that the loss of the codebook takes all of a clipped gradient."""
        with torch.no_grad():
            found = (self.see(images) if isinstance(images, Tensor) else images).features.float()
            return [F.layer_norm(level, level.shape[-1:]) for level in found.split(self.widths, -1)]

    @property
    def codes(self) -> int:
        return sum(one.size for one in self.quantizers)

    def levels(self) -> Iterator[tuple[Quantizer, int]]:
        """Each with the number of its first word."""
        first = 0
        for one in self.quantizers:
            yield one, first
            first += one.size

    def words(self, symbols: int, tokens: int) -> list[range]:
        """Of each token, those of its level."""
        return [range(first, first + one.size) for one, first in self.levels()] * self.count

    def seed(self, images: Tensor | Seen, use: Tensor) -> None:
        uses = use.split([one.size for one in self.quantizers])  # of the same memory
        for one, level, used in zip(self.quantizers, self.features(images), uses, strict=True):
            one.seed(gathered(level.flatten(0, 1)), used)

    def quantize(self, images: Tensor | Seen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = [one(level) for one, level in zip(self.quantizers, self.features(images), strict=True)]
        codes = [codes + first for (codes, _, _), (_, first) in zip(found, self.levels(), strict=True)]
        states = torch.cat([vectors for _, vectors, _ in found], -1) + self.where
        mask = torch.ones_like(codes[0], dtype=torch.bool)
        return torch.stack(codes, -1).flatten(1), states, mask, torch.stack([loss for _, _, loss in found]).sum()

    def head(self, features: list[Tensor]) -> Tensor:
        """Of each level [B, K, E] -> scores [B, T, V]; words of other levels have the least number there is."""
        scores = []
        for (one, first), level in zip(self.levels(), features, strict=True):
            found = one.scores(level)
            least = torch.finfo(found.dtype).min
            scores.append(F.pad(found, (first, self.codes - first - one.size), value=least))
        return torch.stack(scores, 2).flatten(1, 2)

    @torch.no_grad()
    def generate(
        self, images: Tensor | Seen, *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> Captions:
        """A word of each level for each place, whatever `max_new_tokens` says: there are no shorter captions."""
        scores = self.head(self.features(images))
        if temperature == 0:
            codes = scores.argmax(-1).repeat_interleave(samples, 0)
        else:
            generator = torch.Generator(scores.device).manual_seed(seed)
            odds = (scores / temperature).softmax(-1).repeat_interleave(samples, 0)
            codes = torch.multinomial(odds.flatten(0, 1), 1, generator=generator).view(odds.shape[:2])
        logp = (scores / (temperature or 1)).log_softmax(-1).repeat_interleave(samples, 0)
        logp = logp.gather(-1, codes[..., None])[..., 0]
        mask, cut = torch.ones_like(codes, dtype=torch.bool), torch.zeros(len(codes), dtype=torch.bool)
        return Captions([words_of(row) for row in codes.tolist()], codes, mask, logp, cut.to(codes.device))

    def token_logits(self, images: Tensor | Seen, captions: Captions) -> Tensor:
        scores = self.head(self.features(images))
        return scores.repeat_interleave(len(captions.tokens) // len(scores), 0)

    # ----------------------------------------------------------------- codes -> states

    def tokenize(self, texts: list[str], *, ended: bool = False) -> Captions:
        """There is no end-of-text: all texts have one length."""
        codes = torch.tensor([self.codes_of(text) for text in texts], dtype=torch.long, device=self.where.device)
        return Captions(texts, codes, torch.ones_like(codes, dtype=torch.bool))

    def codes_of(self, text: str) -> list[int]:
        found = [WORD.fullmatch(word) for word in text.split()]
        codes = [int(word[1]) for word in found if word]
        allowed = self.words(self.codes, len(found))
        fits = len(codes) == len(found) == len(allowed)
        if not fits or not all(code in words for code, words in zip(codes, allowed, strict=True)):
            ranges = [f"v{first} to v{first + one.size - 1}" for one, first in self.levels()]
            raise ValueError(
                f"VisionCodes reads {self.count} codes, {' and as many, '.join(ranges)}, and no language, such as "
                f"{text[:60]!r}. Train with uae_lightning.stages.codebook_pretrain.CodebookPretrain, and leave out "
                "what draws from prompts or asks questions"
            )
        return codes

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        words = self.tokenize(texts).tokens.unflatten(1, (self.count, -1)).unbind(-1)  # of each level [N, K]
        vectors = [one.vectors(codes - first) for (one, first), codes in zip(self.levels(), words, strict=True)]
        return torch.cat(vectors, -1) + self.where, torch.ones_like(words[0], dtype=torch.bool)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """The codebook; the vision tower stays where it came from."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        state = {n: t.detach().cpu().contiguous() for n, t in self.state_dict().items() if not n.startswith("vision.")}
        save_file(state, folder / "model.safetensors")
        seal(folder)


def words_of(codes: list[int]) -> str:
    return " ".join(f"v{code}" for code in codes)


def codes_in(config: dict[str, Any]) -> list[Any]:
    """How many each level has, of a config."""
    return [config.get("codes"), *([config["detail"].get("codes")] if isinstance(config.get("detail"), dict) else [])]


def without_codes(config: dict[str, Any]) -> dict[str, Any]:
    """The rest of it, of all levels."""
    return {
        name: without_codes(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "codes"
    }
