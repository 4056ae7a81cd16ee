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

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import measure  # before torch: it sets what torch reads when it is imported

# isort: split

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.caption_steps import OwnStep, Result, all_tokens_allowed, own_result, plain_result
from benchmarks.trl_step import TRLStep, import_trl, trl_result
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.paths import resolve
from uae_lightning.scenes.bootstrap.captioner import PROMPT, build_model, build_tokenizer
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene
from uae_lightning.types import Captions
from uae_lightning.usage import Parser

PRESETS = {
    "demo": {"model": "shipped:scenes/encoder", "pictures": 6, "tokens": 40, "side": IMAGE_SIZE},
    "image448": {"model": "random", "pictures": 1, "tokens": 64, "side": 448},
}
TOLERANCE = {  # of log-probabilities, the loss, and gradients (largest difference over the largest gradient)
    "float32": {"log-probabilities": 1e-4, "loss": 1e-5, "gradients": 1e-3},
    "bfloat16": {"log-probabilities": 0.2, "loss": 0.02, "gradients": 0.2},
}


# --------------------------------------------------------------------------------------------------- the model and work


def load_encoder(options, folder: Path, device: torch.device) -> QwenVLEncoder:
    """The policy; `folder` holds it if weights are random."""
    encoder = QwenVLEncoder(
        str(folder), dtype=options.dtype, caption_system="", caption_prompt=PROMPT, generate_system="",
        max_pixels=options.side**2,
    )  # fmt: skip
    encoder.never_sampled = [*encoder.never_sampled, *encoder.ends]  # every caption has its full length
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


# ------------------------------------------------------------------------------------------------------------- equality


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
    measure.run_main(main)
