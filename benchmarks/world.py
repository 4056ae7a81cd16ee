"""`python -m benchmarks.world`: figures of the embedded world, before anything is trained on it.

--what rendering   scenes drawn and captions read in a CPU-second
--what codec       what a PCA of 16 x 16 px patches keeps, by channels
--what reward      what one fault takes off PerceptualGrid, in full and faint, by the strength of its noise
--what training    pictures of the decoder's bootstrap in a CPU-second, in float32 and bfloat16
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from uae_lightning.evaluation.fault_costs import costs_markdown, fault_costs
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.run.memory import freed_memory_kept
from uae_lightning.scenes.bootstrap.captioner import build_model, build_tokenizer
from uae_lightning.scenes.bootstrap.decoder import LATENT_CHANNELS, PATCH, build_parts, web_caption
from uae_lightning.scenes.fault_costs import scene_cases
from uae_lightning.scenes.scene import IMAGE_SIZE, pictures, render_scenes, sample_scene
from uae_lightning.scenes.templates import nearest_scenes
from uae_lightning.types import Conditioning

OLD = {"cells": 2, "image_size": 128, "dither": 0.05}  # of the 64 px world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = {"rendering": rendering, "codec": codec, "reward": reward, "training": training}
    parser.add_argument("--what", nargs="+", choices=parts, default=list(parts))
    torch.set_num_threads(1)
    with freed_memory_kept():
        for name in parser.parse_args().what:
            print(f"{name}:", flush=True)
            parts[name]()


def rendering(count: int = 1280, batch: int = 64) -> None:
    render_scenes([sample_scene("train", 0, 0)])  # sprites are made once
    began = time.process_time()
    scenes = [sample_scene("train", 0, index) for index in range(count)]
    sampled = time.process_time()
    for first in range(0, count, batch):
        render_scenes(scenes[first : first + batch])
    drawn = time.process_time()
    for index, scene in enumerate(scenes):
        web_caption(scene, np.random.default_rng(index))
    told = time.process_time()
    for name, seconds in (("scenes", sampled - began), ("pictures", drawn - sampled), ("captions", told - drawn)):
        print(f"  {name} per CPU-second: {count / seconds:,.0f}")


def codec(fitted: int = 3000, held_out: int = 256) -> None:
    seen = pictures([sample_scene("train", 0, index) for index in range(fitted)])
    scenes = [sample_scene("validation", 0, index) for index in range(held_out)]
    images = pictures(scenes)
    for channels in (96, LATENT_CHANNELS, 160):
        coder = PatchCodec(PATCH, channels)
        coder.fit(2 * seen - 1)
        decoded = (coder.decode(coder.encode(2 * images - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
        error = (decoded - images).square().mean().item()
        right = sum(a == b for a, b in zip(nearest_scenes(decoded)[0], scenes, strict=True))
        print(f"  {channels} channels: {-10 * np.log10(error):.1f} dB, {right} of {held_out} scenes with every fact")


def reward() -> None:
    for options in (OLD, {"dither": 0.05}, {}, {"dither": 0.15}):
        print(f"\nPerceptualGrid({', '.join(f'{name}={value}' for name, value in options.items())})\n")
        print(costs_markdown(fault_costs(PerceptualGrid(**options), scene_cases())), flush=True)


def training(batch: int = 64, words: int = 24, laps: int = 4) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build_parts(Path(folder), 0, build_model(build_tokenizer()).config.text_config.hidden_size)
        for dtype in ("float32", "bfloat16"):
            decoder = SD3Decoder(str(Path(folder) / "decoder"), IMAGE_SIZE, dtype=dtype)
            decoder.transformer.requires_grad_(True)
            states = torch.randn(batch, words, decoder.conditioning_size)
            condition = Conditioning(states, torch.ones(batch, words, dtype=torch.bool))
            x, sigma = torch.randn(batch, *decoder.latent_shape), torch.rand(batch)
            seconds = []
            for _ in range(laps):
                began = time.process_time()
                decoder.velocity(x, sigma, condition).square().mean().backward()
                seconds.append(time.process_time() - began)
                decoder.zero_grad()
            print(f"  {dtype}: {batch / min(seconds):.0f} pictures per CPU-second, forward and backward")


if __name__ == "__main__":
    main()
