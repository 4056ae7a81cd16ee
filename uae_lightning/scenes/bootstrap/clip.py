"""A small CLIP of scenes and captions, trained from scratch: a judge of reports that differs from the reward in kind.

A young CLIP is blind to class and place: the background and the colours alone tell a batch of random scenes apart
(ours, measured). So every scene of a batch brings its own rivals, copies with exactly one wrong fact, as pictures and
as complete captions. Heads that are thrown away afterwards read the facts from the vision tokens, which grounds the
tower early, and one head reads them from the embeddings of pictures and captions alike, which brings the two together.

What came of it sees classes, colours, sizes and backgrounds, but not where objects stand: its embeddings are a bag of
words, and `faults_noticed` in card.json says so. As a judge of places use another.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from uae_lightning.models.weight_files import seal
from uae_lightning.rewards.clip_similarity import ClipSimilarity
from uae_lightning.scenes.bootstrap.captioner import build_tokenizer
from uae_lightning.scenes.bootstrap.detector import detection_loss, disturb
from uae_lightning.scenes.bootstrap.loop import train
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.detector import NAMES, OF_A_CELL, scene_targets
from uae_lightning.scenes.faults import FAULTS, faulty_scenes
from uae_lightning.scenes.instruments import fault_ranking
from uae_lightning.scenes.scene import IMAGE_SIZE, Scene, pictures, sample_scene, split_of

RIVALS = 3  # faulty copies of each scene
CURRICULUM = 100  # steps until scenes may have one object more
PATCH = 16  # px
LONGEST = 96  # tokens; a complete caption of four objects has 88 words
END = "<|endoftext|>"


def train_clip(output: Path, work: Path, *, steps: int, scenes_per_step: int = 16, seed: int = 0) -> dict:
    """Train, or go on with, the CLIP; write it to `output` in the layout of the hub (bf16). Returns its card."""
    torch.manual_seed(seed)
    tokenizer = caption_tokenizer()
    task = _ClipTask(build_clip(tokenizer), tokenizer, scenes_per_step, seed)
    seconds = train(
        task, task.loss, steps=steps, lr=1.5e-3, work=work, save_every=50, report_every=100, report=task.report
    )
    figures = task.retrieval(256)
    save(task.model, tokenizer, output)
    settings = {"steps": steps, "scenes_per_step": scenes_per_step, "rivals": RIVALS, "seed": seed}
    ranking = fault_ranking(ClipSimilarity(str(output)))
    noticed = {kind: round(float(np.mean(hits)), 3) for kind, hits in ranking.items()}
    card = {"seconds": round(seconds), **settings, "retrieval": figures, "faults_noticed": noticed}
    (output / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def caption_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the captions; as CLIP's own tokenizer it ends every text with one token and pads with the same.

    The encoder's <|im_end|> would not do: it has the id 2, at which transformers' CLIP pools at the highest id instead.
    """
    tokenizer = build_tokenizer()
    tokenizer.eos_token = END
    end = (END, tokenizer.convert_tokens_to_ids(END))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[end])
    tokenizer.chat_template = None
    return tokenizer


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Random weights: 0.8 M of the vision tower, 0.4 M of the text tower."""
    width = {"hidden_size": 128, "num_attention_heads": 4, "initializer_range": 0.05}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {"num_hidden_layers": 3, "intermediate_size": 256, "max_position_embeddings": LONGEST}
    vision = {"num_hidden_layers": 4, "intermediate_size": 512, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    text |= width | ends | {"vocab_size": len(tokenizer)}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=width | vision, projection_dim=128))


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights, tokenizer and preprocessing, as in a CLIP of the hub."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    seal(folder)


class _ClipTask(nn.Module):
    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerFast, scenes_per_step: int, seed: int) -> None:
        super().__init__()
        self.model, self.scenes_per_step, self.seed = model, scenes_per_step, seed
        self.tokenize = lambda texts: tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
        self.of_tokens = FactHeads(model.config.vision_config.hidden_size)
        self.of_embeddings = FactHeads(model.config.projection_dim, cells=9)

    def loss(self, step: int) -> dict[str, Tensor]:
        scenes, captions = self.batch(step)
        pixels = 2 * disturb(pictures(scenes), self.seed, step) - 1
        output = self.model(input_ids=self.tokenize(captions), pixel_values=pixels)
        targets = scene_targets(scenes)
        cells = means_of_cells(output.vision_model_output.last_hidden_state[:, 1:])
        sides = [self.of_embeddings(side.unsqueeze(1)) for side in (output.image_embeds, output.text_embeds)]
        return {
            "contrast": contrastive_loss(output.logits_per_image),
            "tokens": 0.3 * detection_loss(self.of_tokens(cells), targets),
            "embeddings": 0.2 * sum(detection_loss(side, targets) for side in sides),
        }

    def batch(self, step: int) -> tuple[list[Scene], list[str]]:
        """Families of scenes with their complete captions; all short or all long, so that little is padding."""
        rng = np.random.default_rng([self.seed, step])
        first, max_objects = step * self.scenes_per_step, 1 + min(2, step // CURRICULUM)
        scenes: list[Scene] = []
        for index in range(first, first + self.scenes_per_step):
            scenes += family(sample_scene("train", self.seed, index, max_objects=max_objects), rng)
        level = "long" if step % 2 else "short"
        return scenes, [write_caption(scene, rng, level=level) for scene in scenes]

    def report(self, step: int) -> str:
        return str(self.retrieval(256))

    @torch.no_grad()
    def retrieval(self, count: int) -> dict[str, float]:
        """Share of `count` validation scenes whose complete caption is found by the picture, and the other way."""
        scenes = [sample_scene("validation", 0, index) for index in range(count)]
        captions = [write_caption(scene, np.random.default_rng([0, index])) for index, scene in enumerate(scenes)]
        logits = self.model(input_ids=self.tokenize(captions), pixel_values=2 * pictures(scenes) - 1).logits_per_image
        right = torch.arange(count)
        hits = {"image_to_text": logits.argmax(1) == right, "text_to_image": logits.argmax(0) == right}
        return {name: round(hit.float().mean().item(), 3) for name, hit in hits.items()}


class FactHeads(nn.Module):
    """Linear heads with the answers of SceneDetector, for training only.

    Args:
        width: of the vectors.
        cells: that one vector speaks of: 1 if each cell has its own vector, 9 if one vector holds the whole picture.
    """

    def __init__(self, width: int, cells: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.presence = nn.Linear(width, cells)
        self.cells = nn.ModuleDict({kind: nn.Linear(width, cells * len(NAMES[kind])) for kind in OF_A_CELL})
        self.background = nn.Linear(width, len(NAMES["background"]))

    def forward(self, vectors: Tensor) -> dict[str, Tensor]:
        """[N, 9, width], or [N, 1, width] of the whole picture -> logits as of SceneDetector."""
        vectors = self.norm(vectors)
        logits = {kind: head(vectors).reshape(len(vectors), 9, -1) for kind, head in self.cells.items()}
        return logits | {"presence": self.presence(vectors).flatten(1), "background": self.background(vectors.mean(1))}


def means_of_cells(patches: Tensor) -> Tensor:
    """[N, 36, W] -> [N, 9, W]: the mean of the 2 x 2 patches of each cell."""
    grid = patches.unflatten(1, (IMAGE_SIZE // PATCH,) * 2)  # [N, 6, 6, W]
    return grid.unflatten(1, (3, 2)).unflatten(3, (3, 2)).mean((2, 4)).flatten(1, 2)


def family(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """The scene and RIVALS different copies with one wrong fact each, all of the train split."""
    members = [scene]
    while len(members) <= RIVALS:
        kind = FAULTS[rng.integers(len(FAULTS))]
        options = [s for s in faulty_scenes(scene, kind) if s not in members and split_of(s) == "train"]
        members += [options[rng.integers(len(options))]] if options else []
    return members


def contrastive_loss(logits: Tensor) -> Tensor:
    """[]: picture i and caption i of logits [N, N] belong together; cross entropy over rows and over columns."""
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
