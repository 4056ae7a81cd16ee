"""Trains the SceneDetector from scratch: minutes of one core.

The scenes of step k are a pure function of k, so a run resumes from weights, optimiser and k alone.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from uae_lightning.scenes.confusion import confusion, confusion_markdown
from uae_lightning.scenes.detector import OF_A_CELL, SceneDetector, scene_targets
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.terminal.progress import say, time_left, watched

MAX_OBJECTS = 4


def train_detector(
    output: Path,
    *,
    work: Path = Path("bootstrap/scenes/detector"),
    steps: int = 2000,
    batch_size: int = 32,
    seed: int = 0,
    width: int = 32,
    learning_rate: float = 3e-3,
    checkpoint_every: int = 250,
) -> dict:
    """Train, or go on with, a detector; write it, its `card.json` and its `confusion.md` to `output`.

    Args:
        output: folder of the finished detector.
        work: folder of the checkpoint; a run with the same arguments goes on from it.
        steps: optimiser steps in all, over all runs.
        batch_size: scenes a step.
        seed: of the weights, the scenes and the disturbances.
        width: of the detector.
        learning_rate: at its peak, a tenth of the way through the cosine.
        checkpoint_every: steps.

    Returns:
        The card: accuracy of each kind of fact on the validation split, CPU-seconds and steps.
    """
    torch.manual_seed(seed)
    detector = SceneDetector(width).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    parts = {"detector": detector, "optimizer": optimizer, "schedule": schedule}
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed, "width": width, "learning_rate": learning_rate}
    first, seconds = _restore(work / "checkpoint.pt", parts, settings)

    started = time.process_time() - seconds
    for step in watched(range(first, steps), steps, "step", "detector", done=first):
        images, targets = scene_batch("train", seed, step, batch_size)
        loss = detection_loss(detector(disturb(images, seed, step)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            seconds = time.process_time() - started
            _store(work / "checkpoint.pt", parts, settings, step + 1, seconds)
            left = time_left(seconds, step + 1, steps)
            say(f"detector step {step + 1}/{steps} loss {loss.item():.4f} {seconds:.0f} s, {left}")

    detector.save(output)
    card = {**settings, "seconds": round(seconds), "validation": validate(SceneDetector.from_folder(output))}
    (output / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    write_confusion(output)
    print(json.dumps(card["validation"], indent=1), flush=True)
    return card


def scene_batch(split: str, seed: int, step: int, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures [B, 3, 96, 96] in [0, 1] of the scenes of one step, and their facts as of `scene_targets`."""
    first = step * batch_size
    scenes = [sample_scene(split, seed, index, max_objects=MAX_OBJECTS) for index in range(first, first + batch_size)]
    return pictures(scenes), scene_targets(scenes)


def disturb(images: Tensor, seed: int, step: int) -> Tensor:
    """What a codec and a sampler do to pictures [B, 3, 96, 96], roughly: blur, a shift of the brightness, noise.

    Each picture gets its own strengths; a quarter of them stays crisp.
    """
    generator = torch.Generator().manual_seed(seed << 32 | step)
    blur, gain, bias, noise = torch.rand(4, len(images), 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    disturbed = torch.lerp(images, blurred, 0.8 * blur)
    disturbed = disturbed * (0.9 + 0.2 * gain) + 0.1 * bias - 0.05
    disturbed = disturbed + 0.1 * noise * torch.randn(images.shape, generator=generator)
    crisp = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.25
    return torch.where(crisp, images, disturbed).clamp(0, 1)


def detection_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """[]: sum of the cross entropies; class, colour and size at occupied cells only."""
    of_cells = [F.cross_entropy(logits[k].flatten(0, 1), targets[k].flatten(), ignore_index=-1) for k in OF_A_CELL]
    presence = F.binary_cross_entropy_with_logits(logits["presence"], targets["presence"].float())
    return sum(of_cells) + presence + F.cross_entropy(logits["background"], targets["background"])


@torch.no_grad()
def validate(detector: SceneDetector, *, batches: int = 16, batch_size: int = 64) -> dict[str, dict[str, float]]:
    """Accuracy of each kind of fact on the validation split, crisp and disturbed; "scene" is every fact right."""
    results = {}
    for condition in ("crisp", "disturbed"):
        right: dict[str, list[Tensor]] = {}
        for step in range(batches):
            images, targets = scene_batch("validation", 0, step, batch_size)
            facts = detector.read(images if condition == "crisp" else disturb(images, 1, step))
            hits = {kind: facts[kind] == targets[kind] for kind in targets}
            occupied = targets["presence"]
            cells_right = hits["presence"] & (torch.stack([hits[k] for k in OF_A_CELL]).all(0) | ~occupied)
            hits["scene"] = cells_right.all(1) & hits["background"]
            for kind, hit in hits.items():
                right.setdefault(kind, []).append(hit[occupied] if kind in OF_A_CELL else hit.flatten())
        results[condition] = {kind: round(torch.cat(hit).float().mean().item(), 4) for kind, hit in right.items()}
    return results


@torch.no_grad()
def write_confusion(folder: Path, *, count: int = 1024) -> None:
    """`confusion.md`: what the detector in `folder` mistakes for what on disturbed validation scenes."""
    images, targets = scene_batch("validation", 0, 0, count)
    read = SceneDetector.from_folder(folder).read(disturb(images, 1, 0))
    head = "# What the scene detector mistakes for what\n\n"
    head += f"{count} validation scenes, blurred and noisy. Rows are the truth.\n\n"
    (folder / "confusion.md").write_text(head + confusion_markdown(confusion(read, targets)))


def _store(path: Path, parts: dict, settings: dict, step: int, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"states": states, "settings": settings, "step": step, "seconds": seconds}, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)  # a killed run leaves the checkpoint before it, never half of one


def _restore(path: Path, parts: dict, settings: dict) -> tuple[int, float]:
    """Load the checkpoint if there is one; returns the next step and the CPU-seconds spent so far."""
    if not path.is_file():
        return 0, 0.0
    checkpoint = torch.load(path, weights_only=True)
    if checkpoint["settings"] != settings:
        raise ValueError(f"{path} was made with {checkpoint['settings']}, not {settings}: delete it to start afresh")
    for name, part in parts.items():
        part.load_state_dict(checkpoint["states"][name])
    return checkpoint["step"], checkpoint["seconds"]
