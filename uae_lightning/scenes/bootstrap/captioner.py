"""The embedded encoder: a small Qwen2.5-VL, trained from scratch to caption scenes tersely and with omissions.

Four phases. Text: the language model learns captions, while linear heads on its last states name the current and the
seven previous tokens. A small model's last states otherwise hold next to nothing of the words already read (they
predict the next one), and a decoder conditioned on them cannot bind colours to objects. Vision: the tower learns to say
what stands in each cell. Captioning: pictures to captions of mixed detail; the states of text read alone are held to
those of the text phase, so that they stay readable, and so that the decoder can be trained at the same time. Habits:
the same with terser captions that often pass over small objects, so that there is something left to learn.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.seeing import Seen
from uae_lightning.scenes.bootstrap.loop import train
from uae_lightning.scenes.captions import matched_facts, parse_caption, vocabulary, write_caption
from uae_lightning.scenes.prompts import training_prompt
from uae_lightning.scenes.scene import BACKGROUNDS, CLASSES, COLORS, IMAGE_SIZE, SIZES, Scene, pictures, sample_scene
from uae_lightning.types import Captions

PROMPT = "describe the picture"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HABITS_FROM = 500_000  # where their scenes begin in the stream of the captioning phase
PATCH = 16  # px; four of them, merged, are a cell of the grid
EMPTY_WEIGHT = 0.1  # of an empty cell beside one with an object, in what the vision tower learns first
LOOK_BACK = 8  # tokens named by the heads on the last state: the current one and seven before
# level, detail, share of the captions: what the encoder learns to see and say
MIXTURE = [("tag", 1.0, 0.15), ("short", 0.5, 0.35), ("short", 0.9, 0.15), ("long", 0.5, 0.15), ("long", 1.0, 0.2)]
# what it starts the stages with: terse, and small objects often go unsaid
HABITS = [("tag", 1.0, 0.2), ("short", 0.4, 0.5), ("short", 0.9, 0.1), ("long", 0.5, 0.05), ("long", 1.0, 0.15)]
FORGOTTEN = 0.6  # of the small objects, in captions that are not long
READ = [("prompt", 1.0, 0.4), *((level, detail, 0.6 * share) for level, detail, share in MIXTURE)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    roles = ["system", "user", "assistant", "generate", *PROMPT.split()]
    words = [*SPECIAL, *dict.fromkeys([*roles, *vocabulary()]), "<|unk|>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|unk|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[1:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=512,
            initializer_range=0.05,  # 0.02 is too small at this width (ours, measured)
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
            bos_token_id=None,
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=4,
            hidden_size=160,
            intermediate_size=480,
            num_heads=5,
            in_channels=5,
            patch_size=PATCH,
            temporal_patch_size=1,
            spatial_merge_size=2,
            out_hidden_size=192,
            fullatt_block_indexes=[0, 1, 2, 3],
            window_size=IMAGE_SIZE,
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def train_text(output: Path, work: Path, *, steps: int, batch_size: int = 32, seed: int = 0) -> dict:
    """The text phase; saves an encoder that can read captions but not see to `output`. Returns figures for its card."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    start = work / "start"
    build_model(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)
    size = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": IMAGE_SIZE**2}
    Qwen2VLImageProcessorPil(patch_size=PATCH, temporal_patch_size=1, merge_size=2, size=size).save_pretrained(start)
    encoder = scenes_encoder(str(start))
    task = _CaptionerTask(encoder, batch_size, seed).requires_grad_(True)
    seconds = train(task, task.text_loss, steps=steps, lr=2e-3, work=work / "text", save_every=100)
    encoder.save(output)
    return {"seconds": round(seconds), "steps": steps, "batch_size": batch_size}


def train_captioner(
    output: Path,
    work: Path,
    text_encoder: Path,
    *,
    vision_steps: int,
    steps: int,
    habit_steps: int,
    batch_size: int = 32,
    seed: int = 0,
) -> dict:
    """The vision, the captioning and the habit phase; saves the encoder to `output` (bf16).

    Returns:
        Figures for its card.
    """
    torch.manual_seed(seed)
    encoder = scenes_encoder(str(text_encoder))
    task = _CaptionerTask(encoder, batch_size, seed).requires_grad_(True)
    task.look_back.requires_grad_(False)
    object.__setattr__(task, "reader", copy.deepcopy(encoder.model.model.language_model).requires_grad_(False))
    options = {"save_every": 100, "report_every": 200}
    seconds = train(task, task.vision_loss, steps=vision_steps, lr=2e-3, work=work / "vision", **options)
    seconds += train(
        task, task.caption_loss, steps=steps, lr=1.5e-3, work=work / "captioner", report=task.report, **options
    )
    seconds += train(
        task, task.habit_loss, steps=habit_steps, lr=7e-4, work=work / "habits", report=task.report, **options
    )
    figures = task.recall(256)
    encoder.save(output, torch.bfloat16)
    counts = {"vision_steps": vision_steps, "steps": steps, "habit_steps": habit_steps, "batch_size": batch_size}
    return {"seconds": round(seconds)} | counts | figures


def scenes_encoder(path: str, **options) -> QwenVLEncoder:
    """An encoder with the prompts the embedded default was trained with."""
    prompts = {"caption_system": "", "caption_prompt": PROMPT, "generate_system": ""}
    return QwenVLEncoder(path, **prompts, max_pixels=IMAGE_SIZE**2, **options)


def mixed_caption(scene: Scene, rng: np.random.Generator, mixture=MIXTURE, *, forgotten: float = 0.0) -> str:
    """A caption of a kind drawn from `mixture`; one that is not long leaves out a share of the small objects."""
    shares = np.array([share for *_, share in mixture])
    level, detail, _ = mixture[rng.choice(len(mixture), p=shares / shares.sum())]
    if level == "prompt":
        return training_prompt(scene, rng) or write_caption(scene, rng, level="short")
    if level != "long" and forgotten:
        said = tuple(item for item in scene.objects if item.size != "small" or rng.random() >= forgotten)
        scene = Scene(scene.background, said or scene.objects[:1])
    return write_caption(scene, rng, level=level, detail=detail)


class _CaptionerTask(nn.Module):
    def __init__(self, encoder: QwenVLEncoder, batch_size: int, seed: int) -> None:
        super().__init__()
        self.encoder, self.batch_size, self.seed = encoder, batch_size, seed
        width = encoder.hidden_size
        self.look_back = nn.Linear(width, LOOK_BACK * encoder.model.config.text_config.vocab_size)
        self.cell_head = nn.Linear(width, len(CLASSES) + 1 + len(COLORS) + len(SIZES))
        self.ground_head = nn.Linear(width, len(BACKGROUNDS))

    def batch(self, step: int, stream: int) -> tuple[list[Scene], np.random.Generator]:
        first = (stream * 1_000_000 + step) * self.batch_size
        max_objects = 1 + min(2, step // 150)  # a curriculum from one object to three
        scenes = [sample_scene("train", self.seed, first + i, max_objects=max_objects) for i in range(self.batch_size)]
        return scenes, np.random.default_rng([self.seed, stream, step])

    def text_loss(self, step: int) -> dict[str, Tensor]:
        ids, mask, positions = self.text_batch(step, 1, READ)
        states = self.encoder.model.model.language_model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False
        )[0]
        logits = self.encoder.model.lm_head(states)
        targets = ids.masked_fill(~mask, -100)
        next_word = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        named = self.look_back(states).unflatten(-1, (LOOK_BACK, -1))
        past = torch.stack([F.pad(targets, (back, 0), value=-100)[:, : ids.shape[1]] for back in range(LOOK_BACK)], -1)
        past = past.masked_fill(~mask[..., None], -100)
        return {"text": next_word, "look_back": 0.4 * LOOK_BACK * F.cross_entropy(named.flatten(0, 2), past.flatten())}

    def hold_loss(self, step: int, mixture=MIXTURE) -> Tensor:
        """Relative squared distance of the states of text read alone from those of the text phase."""
        ids, mask, positions = self.text_batch(step, 3, mixture)
        inputs = dict(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)
        with torch.no_grad():
            wanted = self.reader(**inputs)[0][mask]
        states = self.encoder.model.model.language_model(**inputs)[0][mask]
        return (states - wanted).square().mean() / wanted.square().mean()

    def text_batch(self, step: int, stream: int, mixture=MIXTURE) -> tuple[Tensor, Tensor, Tensor]:
        scenes, rng = self.batch(step, stream)
        prompts = [self.encoder.generate_prompt(mixed_caption(scene, rng, mixture)) for scene in scenes]
        batch = self.encoder.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right")
        ids = batch["input_ids"]
        return ids, batch["attention_mask"].bool(), torch.arange(ids.shape[1]).expand(3, *ids.shape)

    def vision_loss(self, step: int) -> dict[str, Tensor]:
        scenes, _ = self.batch(step, 4)
        return {"dense": self.dense_loss(self.encoder.see(pictures(scenes)), scenes)}

    def caption_loss(self, step: int) -> dict[str, Tensor]:
        scenes, rng = self.batch(step, 2)
        terms = self.seen_loss(scenes, [mixed_caption(scene, rng) for scene in scenes])
        return terms | ({"hold": 10 * self.hold_loss(step)} if step % 3 == 0 else {})

    def habit_loss(self, step: int) -> dict[str, Tensor]:
        scenes, rng = self.batch(HABITS_FROM + step, 2)
        texts = [mixed_caption(scene, rng, HABITS, forgotten=FORGOTTEN) for scene in scenes]
        return self.seen_loss(scenes, texts) | {"hold": 10 * self.hold_loss(HABITS_FROM + step, READ)}

    def seen_loss(self, scenes: list[Scene], texts: list[str]) -> dict[str, Tensor]:
        captions, seen = self.tokens(texts), self.encoder.see(pictures(scenes))
        logits = self.encoder.token_logits(seen, captions)
        targets = captions.tokens.masked_fill(~captions.mask, -100)
        terms = {"caption": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}
        return terms | {"dense": 0.3 * self.dense_loss(seen, scenes)}

    def tokens(self, texts: list[str]) -> Captions:
        tokenizer = self.encoder.tokenizer
        batch = tokenizer(
            [text + " <|im_end|>" for text in texts], return_tensors="pt", padding=True, padding_side="right"
        )
        return Captions(texts, batch["input_ids"], batch["attention_mask"].bool())

    def dense_loss(self, seen: Seen, scenes: list[Scene]) -> Tensor:
        """Every one of the 3 x 3 merged tokens names class, colour and size in its grid cell."""
        tokens = seen.features  # [N, 9, width]
        targets = torch.full((len(scenes), 9, 3), -100)
        targets[..., 0] = len(CLASSES)
        for row, scene in enumerate(scenes):
            for item in scene.objects:
                names = CLASSES.index(item.name), list(COLORS).index(item.color), list(SIZES).index(item.size)
                targets[row, item.cell] = torch.tensor(names)
        parts = self.cell_head(tokens).split([len(CLASSES) + 1, len(COLORS), len(SIZES)], -1)
        weights = torch.ones(len(CLASSES) + 1)
        weights[-1] = EMPTY_WEIGHT
        loss = sum(
            F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten(), weight=None if i else weights)
            for i, part in enumerate(parts)
        )
        grounds = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
        return loss + F.cross_entropy(self.ground_head(tokens.mean(1)), grounds)

    def report(self, step: int) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.recall(64).items())

    @torch.no_grad()
    def recall(self, count: int) -> dict[str, float]:
        """Share of facts right in the most probable complete caption of validation scenes, and words at T = 1."""
        scenes = [sample_scene("validation", 0, i) for i in range(count)]
        images = pictures(scenes)
        start = self.tokens(["this scene shows"] * count).tokens[:, :3]  # a complete caption's first words
        inputs = self.encoder.prompt_inputs(images)
        kinds = F.pad(inputs["mm_token_type_ids"], (0, 3))
        inputs |= {"input_ids": torch.cat([inputs["input_ids"], start], 1), "mm_token_type_ids": kinds}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        out = self.encoder.model.generate(**inputs, do_sample=False, max_new_tokens=80, pad_token_id=self.encoder.pad)
        texts = self.encoder.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        totals = sum((matched_facts(parse_caption(t), s) for t, s in zip(texts, scenes, strict=True)), start=_nothing())
        objects = sum(len(scene.objects) for scene in scenes)
        shares = {k: round(totals[k] / objects, 3) for k in ("class", "color", "size", "position")}
        sampled = self.encoder.generate(images, samples=1, temperature=1.0, max_new_tokens=80, seed=0)
        words = sum(len(text.split()) for text in sampled.texts) / count
        return {**shares, "background": round(totals["background"] / count, 3), "words": round(words, 1)}


def _nothing():
    return matched_facts(parse_caption(""), Scene("", ()))
