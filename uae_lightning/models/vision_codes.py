"""VisionCodes: an encoder whose language is a codebook. What a vision tower sees is quantized, a code for each place.

The rival to text as a bottleneck (VQRAE, arXiv 2511.23386, quantizes the features of a pretrained vision encoder). A
"caption" is a line of words such as "v17 v3 v981", so that stages, rewards and evaluations work as with any encoder;
what asks for a language (prompts, questions, perception) does not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.interfaces import CodeEncoder
from uae_lightning.models.loading import read_object
from uae_lightning.models.quantizers import Quantizer
from uae_lightning.models.qwen_vl import QwenVLEncoder, Seen
from uae_lightning.models.weight_files import seal, verify
from uae_lightning.parallel.collectives import gathered
from uae_lightning.paths import resolve, weightless
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Captions, Learning

WORD = re.compile(r"v(\d+)")


@checked
class VisionCodes(CodeEncoder):
    """The vision tower of a vision-language model, frozen, and a quantizer of its features.

    Args:
        vision: whose vision tower sees; its language model is dropped.
        quantizer: the codebook.
        places: features of a picture: merged patches of the tower at the decoder's size and the tower's `max_pixels`.
        path: folder that `save` wrote, whose number of codes counts more than the quantizer's; None starts anew.

    Raises:
        FileNotFoundError: `path` holds no codebook.
        ValueError: what it holds is damaged, or of another quantizer or number of places.
    """

    def __init__(self, vision: QwenVLEncoder, quantizer: Quantizer, places: Count, path: str | None = None) -> None:
        super().__init__()
        self.vision = vision.requires_grad_(False)
        vision.drop_language()
        self.hidden_size, self.count = vision.hidden_size, int(places)
        self.quantizer = quantizer
        if path is not None:
            quantizer.resize(self._saved(resolve(path))["codes"])
        quantizer.build(vision.hidden_size)
        self.where = nn.Parameter(0.02 * torch.randn(self.count, quantizer.output_size))
        if path is not None:
            self._read(resolve(path))
        self.requires_grad_(False)

    def _saved(self, folder: Path) -> dict[str, Any]:
        """The config of a saved codebook of this kind."""
        file = folder / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"no codebook in {folder}: {file} is missing, name the folder that a stage saved")
        found, wanted = read_object(file), {
            "quantizer": type(self.quantizer).__name__, "width": self.hidden_size, "places": self.count
        }  # fmt: skip
        if {name: found.get(name) for name in wanted} != wanted or not isinstance(found.get("codes"), int):
            raise ValueError(f"{file} is of another codebook, {found}: the YAML describes {wanted}")
        return found

    def _read(self, folder: Path) -> None:
        if weightless():
            return
        verify(folder)
        try:
            self.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder} holds no whole codebook: copy it again ({reason})") from error

    @property
    def config(self) -> dict[str, str | int]:
        return {
            "quantizer": type(self.quantizer).__name__, "codes": self.quantizer.size,
            "width": self.hidden_size, "places": self.count,
        }  # fmt: skip

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
        seen = self.vision.see(images)
        if (found := seen.features.shape[1]) != self.count:
            raise ValueError(
                f"the vision tower sees {found} places in pictures of {tuple(images.shape[2:])} pixels, places is "
                f"{self.count}: set model.autoencoder.encoder.places to {found}"
            )
        return seen

    def features(self, images: Tensor | Seen) -> Tensor:
        """[B, K, E] float32, each of mean 0 and variance 1, without gradient. As the tower gives them they are so large
        that the loss of the codebook takes all of a clipped gradient."""
        with torch.no_grad():
            found = (self.see(images) if isinstance(images, Tensor) else images).features.float()
            return F.layer_norm(found, found.shape[-1:])

    @property
    def codes(self) -> int:
        return self.quantizer.size

    def seed(self, images: Tensor | Seen, use: Tensor) -> None:
        self.quantizer.seed(gathered(self.features(images).flatten(0, 1)), use)

    def quantize(self, images: Tensor | Seen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes, vectors, loss = self.quantizer(self.features(images))
        return codes, vectors + self.where, torch.ones_like(codes, dtype=torch.bool), loss

    def head(self, features: Tensor) -> Tensor:
        """[..., E] -> scores [..., V] of the codes."""
        return self.quantizer.scores(features)

    @torch.no_grad()
    def generate(
        self, images: Tensor | Seen, *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> Captions:
        """A code for each place, whatever `max_new_tokens` says: there are no shorter ones."""
        scores = self.head(self.features(images))
        if temperature == 0:
            codes = scores.argmax(-1).repeat_interleave(samples, 0)
        else:
            generator = torch.Generator(scores.device).manual_seed(seed)
            odds = (scores / temperature).softmax(-1).repeat_interleave(samples, 0).flatten(0, 1)
            codes = torch.multinomial(odds, 1, generator=generator).view(-1, self.count)
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
        codes = torch.tensor([self.codes_of(text) for text in texts], device=self.where.device).view(-1, self.count)
        return Captions(texts, codes, torch.ones_like(codes, dtype=torch.bool))

    def codes_of(self, text: str) -> list[int]:
        found = [WORD.fullmatch(word) for word in text.split()]
        codes = [int(word[1]) for word in found if word]
        if len(codes) != self.count or None in found or max(codes) >= self.quantizer.size:
            raise ValueError(
                f"VisionCodes reads {self.count} codes, v0 to v{self.quantizer.size - 1}, and no language, such as "
                f"{text[:60]!r}. Train with uae_lightning.stages.codebook_pretrain.CodebookPretrain, and leave out "
                "what draws from prompts or asks questions"
            )
        return codes

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        captions = self.tokenize(texts)
        return self.quantizer.vectors(captions.tokens) + self.where, captions.mask

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """The codebook; the vision tower stays where it came from."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        state = {n: t.detach().cpu().contiguous() for n, t in self.state_dict().items() if not n.startswith("vision.")}
        save_file(state, folder / "model.safetensors")
        seal(folder)


def words_of(codes: list[int]) -> str:
    return " ".join(f"v{code}" for code in codes)
