"""What frozen weights of fewer bits change: log-probabilities of captions, velocities, and the reward of a round trip.

    python -m benchmarks.quantization_drift                                  the embedded models, on 192 test scenes
    python -m benchmarks.quantization_drift --config STAGE.yaml --folder PICTURES     others, on pictures of one's own

Every column is of the same models, both bases in another precision, over float32 on the same pictures: captions that
float32 has sampled are read back by the other encoder; the decoder sees the same latents, texts and noise; the round
trip is the other models' own, greedy captions drawn from the same noise. `fp8` rounds the weights of the blocks (E4M3,
a scale for each row) and computes in float32; the others are what the options `dtype` and `quantization` do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae_lightning.algorithms.token_logprobs import gather_logprobs
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.data.images import open_pictures
from uae_lightning.evaluation.intervals import gain, mean_interval
from uae_lightning.interfaces import Reward
from uae_lightning.ranges import Count
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.run.loading import build_autoencoder
from uae_lightning.run.provenance import provenance
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.scenes.scene_facts import SceneFacts
from uae_lightning.types import Captions, RewardInput

BASES: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "fp8": {},
    "8bit": {"quantization": "8bit"},
    "4bit": {"quantization": "4bit"},
}
ROOT = Path(__file__).parents[1]
BATCH = 32
E4M3_MOST = torch.finfo(torch.float8_e4m3fn).max
Spans = dict[str, dict[str, float]]  # name -> mean, low, high


@dataclass(frozen=True)
class Seen:
    """Of all pictures, a value for each."""

    logp: list[float]  # mean over the tokens of a caption that float32 has sampled
    velocity: Tensor  # [N, C, h, w]
    captions: list[str]
    scores: dict[str, list[float]]  # judge -> of the round trip


def main(args: list[str] | None = None) -> None:
    options = parse(args)
    exact = build(options.config, "float32")
    images = pictures_of(options, exact.image_size)
    judges: dict[str, Reward] = {"reward": PerceptualGrid(), "pixels": PixelSimilarity()}
    judges |= {} if options.folder else {"facts": SceneFacts()}
    asked = sampled(exact, images)
    before = seen(exact, images, asked, judges)
    rows = {}
    for base in options.bases:
        rows[base] = drift(before, seen(build(options.config, base), images, asked, judges))
        print(f"{base} is done", flush=True)
    print("\n".join(table(rows)))
    if options.json:
        made = provenance("python -m benchmarks.quantization_drift")
        options.json.write_text(json.dumps({"pictures": len(images), "drift": rows} | made, indent=1))


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "conf" / "scenes" / "encoder_rl.yaml", help="of a stage")
    parser.add_argument("--folder", type=Path, help="of pictures; default: scenes")
    parser.add_argument("--pictures", type=Count, default=192)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--json", type=Path)
    return parser.parse_args(args)


def pictures_of(options: argparse.Namespace, side: int) -> Tensor:
    if options.folder is None:
        return pictures([sample_scene("test", 0, index) for index in range(options.pictures)])
    return open_pictures(sorted(options.folder.iterdir())[: options.pictures], side)


def build(config: Path, base: str) -> AutoEncoder:
    settings = {
        f"{part}.{name}": value for part in ("encoder", "decoder") for name, value in BASES.get(base, {}).items()
    }
    model = build_autoencoder(config, settings)
    if base == "fp8":
        for block in (*model.reader.blocks(), *model.flow_decoder.blocks()):
            round_to_fp8(block)
    return model


@torch.no_grad()
def round_to_fp8(block: nn.Module) -> None:
    """Weights of linear layers, in place: a scale for each row, so that its largest weight is the largest number."""
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            scale = layer.weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / E4M3_MOST
            layer.weight.copy_((layer.weight / scale).to(torch.float8_e4m3fn).to(layer.weight.dtype) * scale)


def sampled(model: AutoEncoder, images: Tensor) -> list[Captions]:
    """For each batch of pictures a caption each, at the temperature of the YAML."""
    return [model.write(batch, 1, seed) for seed, batch in enumerate(images.split(BATCH))]


@torch.no_grad()
def seen(model: AutoEncoder, images: Tensor, asked: list[Captions], judges: dict[str, Reward]) -> Seen:
    temperature = model.captioning.temperature
    model.captioning = replace(model.captioning, temperature=0.0)
    logp, velocities, captions, scores = [], [], [], {name: [] for name in judges}
    for number, (batch, said) in enumerate(zip(images.split(BATCH), asked, strict=True)):
        logits = model.reader.token_logits(batch, said)
        each = gather_logprobs(logits.float(), said.tokens, temperature=temperature)
        logp += ((each * said.mask).sum(1) / said.lengths).tolist()
        velocities.append(velocity(model, batch, said.texts, number))
        own, drawn = model.reconstruct(batch, number)
        captions += own.texts
        for name, judge in judges.items():
            scores[name] += judge(RewardInput(batch, drawn, own.texts)).total.tolist()
    return Seen(logp, torch.cat(velocities), captions, scores)


def velocity(model: AutoEncoder, images: Tensor, texts: list[str], seed: int) -> Tensor:
    """[N, C, h, w] of the decoder at noise levels spread evenly over the batch."""
    sigma = torch.linspace(0.1, 1.0, len(images))
    clean, noise = model.decoder.encode_images(images), model.noise(len(images), seed)
    noisy = clean.lerp(noise, sigma.view(-1, 1, 1, 1))
    return model.flow_decoder.velocity(noisy, sigma, model.read(texts))


def drift(before: Seen, after: Seen) -> Spans:
    off = [abs(a - b) for a, b in zip(after.logp, before.logp, strict=True)]
    error = (after.velocity - before.velocity).square().mean((1, 2, 3)) / before.velocity.square().mean((1, 2, 3))
    other = [float(a != b) for a, b in zip(after.captions, before.captions, strict=True)]
    spans = {
        "log-probability of a token": gain([before.logp], [after.logp]),
        "- its size": mean_interval(off),
        "velocity, relative error": mean_interval(error.sqrt().tolist()),
        "greedy captions that differ": mean_interval(other),
    }
    spans |= {f"round trip: {name}": gain([before.scores[name]], [after.scores[name]]) for name in before.scores}
    return {name: dict(span) for name, span in spans.items()}


def table(rows: dict[str, Spans]) -> list[str]:
    lines = ["| over float32 | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for name in next(iter(rows.values())):
        cells = [
            f"{row[name]['mean']:+.4f} [{row[name]['low']:+.4f}, {row[name]['high']:+.4f}]" for row in rows.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
