"""One step of `EncoderRL` against one of TRL's `GRPOTrainer`, on the same model, pictures, prompt and settings.

    python -m benchmarks.encoder_rl                      # the TRL that is installed, sizes of the demo
    python -m benchmarks.encoder_rl --preset image448    # pictures of 256 tokens each, random weights
    python -m benchmarks.encoder_rl --trl FOLDER         # of `pip install --target FOLDER --no-deps trl==VERSION`

Three parts are timed: "generation" of N = P * G captions of exactly T tokens; "loss", a step whose captions are given,
from rewards to the optimiser; and the whole "step". Rewards are a formula on the tokens, so that no picture is drawn.
Neither side runs inside its Trainer's loop: data loading, logging and checkpoints cost neither anything.

Before that, both get the same tokens and must agree with each other, and with a plain loop written out here, in
log-probabilities, loss and gradients. TRL leaves tokens in the softmax that the encoder never samples (placeholders of
pictures); for this comparison alone the encoder does so too.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure  # before torch: it sets what torch reads when it is imported

# isort: split

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from uae_lightning.bootstrap.captioner import PROMPT, build_model, build_tokenizer
from uae_lightning.data.scenes import render, sample_scene
from uae_lightning.models.adapters import LoRA
from uae_lightning.models.qwen_vl import TEXT_LINEARS, QwenVLEncoder
from uae_lightning.paths import resolve
from uae_lightning.stages.common import Captioning
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Batch, Captions, RewardInput, RewardOutput
from uae_lightning.usage import Parser, UsageError

PRESETS = {
    "demo": {"model": "shipped:scenes/encoder", "pictures": 6, "tokens": 40, "side": 64},
    "image448": {"model": "random", "pictures": 1, "tokens": 64, "side": 448},
}
TOLERANCE = {  # of log-probabilities, the loss, and gradients (largest difference over the largest gradient)
    "float32": {"log-probabilities": 1e-4, "loss": 1e-5, "gradients": 1e-3},
    "bfloat16": {"log-probabilities": 0.2, "loss": 0.02, "gradients": 0.2},
}


# ------------------------------------------------------------------------------------------------- the model and work


def load_encoder(options, folder: Path, device: torch.device) -> QwenVLEncoder:
    """The policy, its adapters not at zero so that the reference differs; `folder` holds it if weights are random."""
    encoder = QwenVLEncoder(
        str(folder), train="lora", lora=LoRA(rank=options.lora_rank, alpha=2 * options.lora_rank),
        dtype=options.dtype, caption_system="", caption_prompt=PROMPT, generate_system="", max_pixels=options.side**2,
    )  # fmt: skip
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    encoder.never_sampled = [*encoder.never_sampled, encoder.eos]  # every caption has its full length
    return encoder.to(device)


def weights(options, work: Path) -> Path:
    """Where the encoder's weights lie: `--model`, or random ones written to `work`."""
    if not options.model.startswith("random"):
        return resolve(options.model)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    config = model.config
    vision = {"patch_size": 14, "temporal_patch_size": 2, "in_channels": 3, "window_size": 112}
    if options.model == "random":
        config.vision_config.update(vision | {"fullatt_block_indexes": [2]})
        config.text_config.max_position_embeddings = 4096
    else:
        config = _full_size(options.model.removeprefix("random:"), config)
    with torch.device(options.device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=getattr(torch, options.dtype))
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    area = {"shortest_edge": 28**2, "longest_edge": options.side**2}
    Qwen2VLImageProcessorPil(patch_size=14, temporal_patch_size=2, merge_size=2, size=area).save_pretrained(work)
    return work


def _full_size(name: str, small):
    """The architecture of a published model, as it comes with the package, with the special tokens of `small`."""
    with torch.device("meta"):  # the config will do: nothing is asked of the hub
        config = AutoConfig.from_pretrained(resolve(name))
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, key, getattr(small, key))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, key, getattr(small.text_config, key))
    return config


def scenes(options, device: torch.device) -> Tensor:
    """[P, 3, H, W] in [0, 1]."""
    scenes = np.stack([render(sample_scene("train", 0, index)) for index in range(options.pictures)])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 255
    return nn.functional.interpolate(images, (options.side, options.side), mode="nearest").to(device)


def reward(tokens: list[int]) -> float:
    """A number in [0, 1) that depends on every token."""
    return sum(place * token for place, token in enumerate(tokens, 1)) % 97 / 97


# ------------------------------------------------------------------------------------------------------------ our side


class NoPart(nn.Module):
    """In place of projector and decoder, of which the step needs the sizes alone."""

    output_size, conditioning_size, latent_shape = 1, 1, (1, 1, 1)

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size


class OwnStep(EncoderRL):
    """`EncoderRL` without a Trainer and without pictures drawn."""

    def __init__(self, encoder: QwenVLEncoder, images: Tensor, options) -> None:
        part = NoPart(encoder.hidden_size)
        super().__init__(
            encoder, part, part, captioning=Captioning(1.0, options.tokens), group_size=options.group,
            micro_batch=options.micro_batch, kl_beta=options.kl_beta, normalization=options.normalization,
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=options.lr, weight_decay=0.0, fused=True
            ),
        )  # fmt: skip
        self.batch = Batch(images, [""] * len(images), [str(number) for number in range(len(images))])
        self.score = self.rewards
        self.own_optimizer = self.configure_optimizers()
        self.given: Captions | None = None  # captions to take instead of new ones
        self.logged: dict[str, Tensor] = {}

    def generation(self) -> Captions:
        return super().caption(self.batch.images, self.group_size, self.step_seed(0))

    def step(self) -> None:
        self.training_step(self.batch, 0)

    def caption(self, images: Tensor, samples: int, seed: int) -> Captions:
        self.sampled = super().caption(images, samples, seed) if self.given is None else self.given
        return self.sampled

    def draw(self, texts: list[str], noise: Tensor) -> Tensor:
        return noise.new_zeros(len(texts), 3, 1, 1)

    def rewards(self, inputs: RewardInput) -> RewardOutput:
        total = torch.tensor([reward(tokens) for tokens in self.sampled.tokens.tolist()])
        return RewardOutput(total, {"benchmark": total})

    def optimizers(self) -> torch.optim.Optimizer:
        return self.own_optimizer

    def backward_of_micro_batch(self, loss: Tensor) -> None:
        loss.backward()

    def log(self, name: str, value, **_) -> None:
        self.logged[name] = value

    def modules_to_count(self) -> dict[str, nn.Module]:
        return {"text": self.encoder.model.model.language_model, "vision": self.encoder.model.model.visual}


# --------------------------------------------------------------------------------------------------------- TRL's side


def import_trl(folder: Path | None) -> types.ModuleType:
    """TRL from `folder`, or the installed one.

    Raises:
        UsageError: there is none.
    """
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        import trl.trainer.grpo_trainer
    except ImportError as error:
        raise UsageError(
            f"TRL cannot be imported ({error}): `pip install 'uae-lightning[benchmarks]'`, or --trl FOLDER with a "
            "version that `pip install --target FOLDER --no-deps trl==...` put there"
        ) from error
    return trl


def make_processor(encoder: QwenVLEncoder):
    """Text and pictures to model inputs, in the form that TRL wants; patches are cut as the encoder does it.

    The processor of transformers cannot be built without torchvision, for the sake of videos.
    """
    from transformers import BatchFeature, ProcessorMixin
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    class Patches(Qwen2VLImageProcessorPil):
        def __call__(self, images, **_) -> BatchFeature:
            flat = [image for row in images for image in (row if isinstance(row, list) else [row])]
            pixels = torch.stack([torch.from_numpy(np.array(image)) for image in flat])
            patches, grid = encoder.patchify(pixels.permute(0, 3, 1, 2).float() / 255)
            return BatchFeature({"pixel_values": patches, "image_grid_thw": grid})

    class Processor(Qwen2_5_VLProcessor):
        def __init__(self, image_processor, tokenizer, chat_template=None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
                [self.image_token, self.video_token]
            )
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    tokenizer = copy.deepcopy(encoder.tokenizer)
    sizes = {"patch_size": encoder.preprocessor.patch_size, "merge_size": encoder.preprocessor.merge_size}
    return Processor(Patches(**sizes), tokenizer, chat_template=tokenizer.chat_template)


class TRLStep:
    """`GRPOTrainer` with the policy's weights and adapters, driven as its own loop would.

    Rows are not shuffled, so that what both sides compute can be compared row by row.
    """

    def __init__(self, trl: types.ModuleType, folder: Path, own: OwnStep, options, work: Path) -> None:
        from datasets import Dataset
        from PIL import Image

        trl.trainer.grpo_trainer.shuffle_sequence_dict = lambda batch: batch
        encoder, images = own.encoder, own.batch.images
        self.accumulation = options.pictures * options.group // options.micro_batch
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, options.dtype))
        lora = LoRA(rank=options.lora_rank, alpha=2 * options.lora_rank).config(TEXT_LINEARS)
        message = [{"role": "user", "content": PROMPT}]
        self.trainer = trl.GRPOTrainer(
            model,
            self._rewards,
            self._arguments(trl, encoder, options, work),
            Dataset.from_list([{"prompt": message}]),
            processing_class=make_processor(encoder),
            peft_config=lora,
        )
        self.trainer.current_gradient_accumulation_steps = self.accumulation
        self.trainer.create_optimizer()
        self.model = self.trainer.model.train()
        self.load_adapters(encoder)
        pictures = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        self.rows = [
            {"prompt": message, "image": Image.fromarray(picture)} for picture in pictures for _ in range(options.group)
        ]
        self.prompts = [
            trl.data_utils.prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in self.rows
        ]
        self.fresh = self.trainer._generate

    def _arguments(self, trl: types.ModuleType, encoder: QwenVLEncoder, options, work: Path):
        return trl.GRPOConfig(
            output_dir=str(work),  # where nothing is written
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=self.accumulation,
            num_generations=options.group,
            max_completion_length=options.tokens,
            generation_kwargs={"suppress_tokens": encoder.never_sampled},
            beta=options.kl_beta,
            use_bias_correction_kl=False,  # the KL's estimate is weighted by the ratio then, in its gradient too
            loss_type=options.normalization,
            scale_rewards="group",
            learning_rate=options.lr,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            gradient_checkpointing=False,  # the encoder keeps its activations too
            bf16=False,  # autocast; frozen weights have the type of the encoder's
            use_cpu=options.device == "cpu",
            report_to="none",
        )

    @staticmethod
    def _rewards(prompts, completions, completion_ids: list[list[int]], **_) -> list[float]:
        return [reward(tokens) for tokens in completion_ids]

    def load_adapters(self, encoder: QwenVLEncoder) -> None:
        own = dict(encoder.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.adapters().items():
                parameter.copy_(own[name])

    def adapters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by the names that the encoder's have."""
        prefix = "base_model.model."
        return {
            name.removeprefix(prefix): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def generation(self):
        return self.fresh(self.prompts)

    def give(self, captions: Captions | None) -> None:
        """Captions to take instead of new ones; None goes back to new ones."""
        trainer = self.trainer
        trainer._generate = self.fresh
        if captions is not None:
            single_turn = trainer._generate_single_turn
            trainer._generate_single_turn = lambda *_, **__: (captions.tokens.tolist(), None)
            generated = self.fresh(self.prompts)
            trainer._generate_single_turn = single_turn
            trainer._generate = lambda prompts: generated

    def gradients(self) -> float:
        """Rollout and backward passes; returns the loss."""
        losses = [self.trainer.training_step(self.model, self.rows, None) for _ in range(self.accumulation)]
        return float(sum(losses))

    def step(self) -> None:
        self.gradients()
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.model.zero_grad()

    def modules_to_count(self) -> dict[str, nn.Module]:
        model = self.model.get_base_model().model
        return {"text": model.language_model, "vision": model.visual}


# ----------------------------------------------------------------------------------------------------------- equality


@dataclass(frozen=True)
class Result:
    """What a step computes from given captions."""

    logp: Tensor  # [N, T]
    loss: float
    gradients: dict[str, Tensor]


@contextmanager
def all_tokens_allowed(encoder: QwenVLEncoder) -> Iterator[None]:
    """The softmax is over the whole vocabulary, as TRL's."""
    never, encoder.never_sampled = encoder.never_sampled, np.empty(0, int)
    try:
        yield
    finally:
        encoder.never_sampled = never


def own_result(own: OwnStep, captions: Captions) -> Result:
    own.given, own.optimizer_step_after_clipping = captions, lambda: 0.0
    own.step()
    with torch.no_grad():
        logp, _ = own.encoder.token_logprobs(own.batch.images, captions, temperature=1.0)
    del own.optimizer_step_after_clipping
    own.given = None
    return Result(logp, float(own.logged["train/loss"]), taken(own.encoder.model))


def plain_result(own: OwnStep, captions: Captions, options) -> Result:
    """Every copy with its own picture and prompt, logits [N, T, V] at once, the loss as it is in the papers."""
    encoder, tokens = own.encoder, captions.tokens
    inputs = encoder.prompt_inputs(own.batch.images.repeat_interleave(options.group, 0))
    for name, more in [("input_ids", tokens), ("attention_mask", 1), ("mm_token_type_ids", 0)]:
        inputs[name] = torch.cat([inputs[name], torch.zeros_like(tokens) + more], 1)

    def logprobs() -> Tensor:
        encoder.model.model.rope_deltas = None
        logits = encoder.model(**inputs, use_cache=False).logits[:, -tokens.shape[1] - 1 : -1]
        return logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    logp = logprobs()
    with torch.no_grad(), encoder.reference():
        reference = logprobs()
    rewards = torch.tensor([reward(row) for row in tokens.tolist()], device=logp.device).view(-1, options.group)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    ratio = (logp - logp.detach()).exp()
    kl = (reference - logp).exp() - (reference - logp) - 1
    loss = (-ratio * advantages.view(-1, 1) + options.kl_beta * kl).mean()  # one length: all normalisations agree
    loss.backward()
    return Result(logp.detach(), loss.item(), taken(encoder.model))


def trl_result(other: TRLStep, captions: Captions) -> Result:
    kept: list[Tensor] = []
    compute = other.trainer._get_per_token_logps_and_entropies

    def watched(*arguments, **options):
        results = compute(*arguments, **options)
        if torch.is_grad_enabled():
            kept.append(results[0].detach())
        return results

    other.trainer._get_per_token_logps_and_entropies = watched
    other.give(captions)
    loss = other.gradients()
    other.give(None)
    other.trainer._get_per_token_logps_and_entropies = compute
    gradients = {name: parameter.grad.clone() for name, parameter in other.adapters().items()}
    other.model.zero_grad()
    return Result(torch.cat(kept), loss, gradients)


def taken(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of the adapters, which are gone from the model then."""
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def differences(one: Result, other: Result) -> dict[str, float]:
    """Largest differences: absolute, of gradients relative to the largest entry of all.

    Raises:
        ValueError: the two do not train the same parameters.
    """
    if one.gradients.keys() != other.gradients.keys():
        raise ValueError(f"different parameters: {sorted(one.gradients.keys() ^ other.gradients.keys())[:3]}")
    scale = max(gradient.abs().max() for gradient in other.gradients.values())
    apart = max((one.gradients[name] - gradient).abs().max() for name, gradient in other.gradients.items())
    return {
        "log-probabilities": (one.logp - other.logp).abs().max().item(),
        "loss": abs(one.loss - other.loss),
        "gradients": (apart / scale).item(),
    }


def check_equal(name: str, found: dict[str, float], dtype: str) -> None:
    """Print what was found.

    Raises:
        ValueError: a difference is above its tolerance.
    """
    allowed = TOLERANCE[dtype]
    print(f"equal to {name}: " + ", ".join(f"{key} {found[key]:.1e} (<= {allowed[key]:.0e})" for key in found))
    if wrong := [key for key in found if not found[key] <= allowed[key]]:
        raise ValueError(f"this project's step and {name} differ in {' and '.join(wrong)}: timings would mean nothing")


# -------------------------------------------------------------------------------------------------------- command line


def make_parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.encoder_rl", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo", help="of the next four (default: demo)")
    parser.add_argument("--model", help="folder, shipped:NAME, random, or random:HUB_ID for its architecture")
    parser.add_argument("--pictures", type=int, help="P")
    parser.add_argument("--tokens", type=int, help="T, of every caption")
    parser.add_argument("--side", type=int, help="of the pictures, in pixels")
    parser.add_argument("--group", type=int, default=8, help="G (default: 8)")
    parser.add_argument("--micro-batch", type=int, help="captions per forward and backward pass (default: P * G)")
    parser.add_argument("--lora-rank", type=int, default=32, help="(default: 32)")
    parser.add_argument("--kl-beta", type=float, default=0.01, help="(default: 0.01)")
    parser.add_argument("--lr", type=float, default=1e-3, help="(default: 0.001)")
    parser.add_argument("--normalization", default="dr_grpo", choices=["grpo", "dr_grpo", "dapo"])
    parser.add_argument("--trl", type=Path, metavar="FOLDER", help="take TRL from FOLDER instead of the installed one")
    measure.add_options(parser)
    return parser


def parse(args: list[str]):
    parser = make_parser()
    parser.set_defaults(**PRESETS[parser.parse(args).preset])
    options = parser.parse(args)
    options.micro_batch = options.micro_batch or options.pictures * options.group
    if options.pictures * options.group % options.micro_batch or options.micro_batch % options.group:
        parser.error(f"--micro-batch {options.micro_batch} must hold whole groups of {options.group} and divide P * G")
    return options


def build(options, work: Path, device: torch.device) -> tuple[OwnStep, Path]:
    folder = weights(options, work)
    own = OwnStep(load_encoder(options, folder, device), scenes(options, device), options)
    return own.to(device), folder


def parts(own: OwnStep, other: TRLStep, captions: Captions) -> Iterator[tuple[str, Callable, Callable]]:
    """Name of each part, TRL's work and this project's, set up when it is asked for."""
    yield "generation", other.generation, own.generation
    own.given = captions
    other.give(captions)
    yield "loss", other.step, own.step
    own.given = None
    other.give(None)
    yield "step", other.step, own.step


def main(args: list[str]) -> None:
    options = parse(args)
    device = measure.start(options)
    trl = import_trl(options.trl)
    with tempfile.TemporaryDirectory() as work:
        own, folder = build(options, Path(work), device)
        other = TRLStep(trl, folder, own, options, Path(work))
    captions, peer, equality = own.generation(), f"TRL {trl.__version__}", {}
    with all_tokens_allowed(own.encoder):
        result = own_result(own, captions)
        results = {"a plain loop": plain_result(own, captions, options), peer: trl_result(other, captions)}
    for name, other_result in results.items():
        equality[name] = differences(result, other_result)
        check_equal(name, equality[name], options.dtype)
    modules = {peer: other.modules_to_count(), "EncoderRL": own.modules_to_count()}
    rows = []
    for part, theirs, ours in parts(own, other, captions):
        runs = {peer: theirs, "EncoderRL": ours}
        rows += measure.compare(part, runs, baseline=peer, modules=modules, options=options, device=device)
    command = " ".join(["python -m benchmarks.encoder_rl", *args])
    measure.finish(command, options, rows, trl=trl.__version__, equality=equality)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UsageError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
