"""What a GPU does with this project, in one call of under ten minutes.

    python -m benchmarks.on_a_card --json card.json               on a GPU
    python -m benchmarks.on_a_card --small                        small models and matrices, on a CPU too: does it run?

Parts, in this order: `products` of matrices by type, `attention` by backend at SD3.5's shapes, `layers` in 8 and 4 bits
against bf16 with the error they make, `compile` of blocks of SD3.5, and `stages`: peak memory against `uae plan` and
seconds of a step of the three stages of conf/real with random weights of the published size, captions of full length.
A part that is not to be had, raises, or would begin after --seconds is listed under `skipped` with the reason. No
weights are read from disk, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from benchmarks import plan_error
from benchmarks.random_weights import DECODERS, architecture
from uae_lightning.models.quantization import _quantized
from uae_lightning.run.spec import fit_args, read_run
from uae_lightning.run.stage_cli import quiet

ROOT = Path(__file__).parents[1]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip
SHORT = {  # of conf/real/run.yaml: one group in each step, so that all three take seconds
    "decoder_pretrain": ["--trainer.accumulate_grad_batches=1"],
    "encoder_rl": ["--model.autoencoder.captioning.max_new_tokens=256"],
    "decoder_rl": [
        "--data.init_args.batch_size=1",
        "--model.init_args.group_size=4",
        "--model.init_args.window=[0, 2]",
    ],
}
Row = dict[str, Any]


class Skipped(Exception):
    """Says why a part is not measured."""


def main(args: list[str] | None = None) -> dict[str, Any]:
    options = parse(args)
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    until = time.monotonic() + options.seconds
    parts = {
        "products": products, "attention": attention, "layers": layers, "compile": compiled, "stages": stages
    }  # fmt: skip
    found: dict[str, Any] = {"machine": machine(device), "small": options.small, "skipped": {}}
    for name, part in parts.items():
        found[name] = []
        for label, measure in part(device, options.small):
            try:
                if time.monotonic() > until:
                    raise Skipped(f"{options.seconds} seconds are over")
                row = {"what": label, **measure()}
                found[name].append(row)
                print(f"{name:<10}{json.dumps(row)}", flush=True)
            except Exception as error:  # one part that a card cannot do keeps none of the others back
                found["skipped"][f"{name}: {label}"] = said = " ".join(str(error).split())[:300] or type(error).__name__
                print(f"{name:<10}{label}: skipped, {said}", flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    return found


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models and matrices; the stages of conf/scenes")
    parser.add_argument("--seconds", type=float, default=480, help="after which no further part is begun")
    parser.add_argument("--json", type=Path, help="written after each part, so that a stopped call leaves what it has")
    options = parser.parse_args(args)
    if not (options.small or torch.cuda.is_available()):
        parser.error("there is no GPU here: --small shows that it runs, and its figures say nothing of a card")
    return options


def machine(device: torch.device) -> dict[str, Any]:
    found = {"date": datetime.now(UTC).isoformat("T", "seconds"), "torch": torch.__version__, "device": str(device)}
    if device.type == "cpu":
        return found | {"name": platform.processor() or platform.machine()}
    card = torch.cuda.get_device_properties(device)
    return found | {"name": card.name, "GB": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """The least of several, after one that loads kernels."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


# ------------------------------------------------------------------------------------------------ parts

Parts = Iterator[tuple[str, Callable[[], Row]]]


def products(device: torch.device, small: bool) -> Parts:
    side = 256 if small else 8192

    def measure(dtype: torch.dtype) -> Row:
        a = torch.randn(side, side, device=device).to(dtype)
        return {"TFLOP/s": round(2 * side**3 / seconds_of(lambda: a @ a, device) / 1e12, 4)}

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield str(dtype).removeprefix("torch."), lambda dtype=dtype: measure(dtype)


def attention(device: torch.device, small: bool) -> Parts:
    """Of SD3.5-medium at 512 px with a caption of 512 tokens: 24 heads of 64, 1,024 + 512 places, four pictures."""
    shape = (1, 2, 64, 16) if small else (4, 24, 1536, 64)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))

    def measure(backend: SDPBackend) -> Row:
        with sdpa_kernel(backend):
            run = seconds_of(lambda: nn.functional.scaled_dot_product_attention(q, k, v), device)
        return {"ms": round(1000 * run, 4), "TFLOP/s": round(4 * q.numel() * shape[2] / run / 1e12, 4)}

    def flash_attn() -> Row:
        if not is_flash_attn_2_available():
            raise Skipped("flash-attn is not installed, or there is no GPU")
        from flash_attn import flash_attn_func

        turned = [one.transpose(1, 2).contiguous() for one in (q, k, v)]
        return {"ms": round(1000 * seconds_of(lambda: flash_attn_func(*turned), device), 4)}

    for name, backend in BACKENDS.items():
        yield name, lambda backend=backend: measure(backend)
    yield "flash-attn package", flash_attn


def layers(device: torch.device, small: bool) -> Parts:
    """Two linear layers of Qwen2.5-VL-3B on a caption of 512 tokens, and on one token as in generation."""
    sizes = [(128, 256)] if small else [(2048, 11008), (11008, 2048)]

    def measure(wide: int, out: int, rows: int, quantization: str) -> Row:
        plain = nn.Linear(wide, out, bias=False, dtype=torch.bfloat16, device=device).requires_grad_(False)
        x = torch.randn(rows, wide, dtype=torch.bfloat16, device=device)
        layer = plain if quantization == "none" else _quantized(plain, quantization)
        with torch.no_grad():
            expected, seen = plain(x).float(), layer(x).float()
            error = ((seen - expected).norm() / expected.norm()).item()
            return {"ms": round(1000 * seconds_of(lambda: layer(x), device), 4), "relative error": round(error, 5)}

    for wide, out in sizes:
        for rows in (1, 64 if small else 512):
            for kind in ("none", "8bit", "4bit"):
                label = f"{wide} x {out}, {rows} rows, {kind}"
                yield label, lambda a=(wide, out, rows, kind): measure(*a)


def compiled(device: torch.device, small: bool) -> Parts:
    """Four blocks of SD3.5-medium at 512 px; what is compiled is a block, as `SD3Decoder` does."""

    def build() -> SD3Transformer2DModel:
        config = json.loads((architecture(DECODERS["sd35_medium"]) / "transformer" / "config.json").read_text())
        config |= {"num_layers": 1 if small else 4, "dual_attention_layers": [0]}
        if small:
            config |= {
                "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32,
                "joint_attention_dim": 24, "pooled_projection_dim": 8, "pos_embed_max_size": 16,
            }  # fmt: skip
        with device:
            model = SD3Transformer2DModel.from_config(config)
        return nn.Module.to(model, torch.bfloat16).eval().requires_grad_(False)

    def measure(compile_: bool) -> Row:
        model, side = build(), 8 if small else 64
        if compile_ and small and device.type == "cpu":
            raise Skipped("compiling for a CPU takes a C++ compiler and minutes")
        for block in model.transformer_blocks if compile_ else ():
            block.compile()
        inputs = {
            "hidden_states": torch.randn(2, 16, side, side), "timestep": torch.full((2,), 500.0),
            "encoder_hidden_states": torch.randn(2, 32 if small else 512, model.config.joint_attention_dim),
            "pooled_projections": torch.randn(2, model.config.pooled_projection_dim),
        }  # fmt: skip
        given: dict[str, Tensor] = {name: one.to(device, torch.bfloat16) for name, one in inputs.items()}
        start = time.perf_counter()
        with torch.no_grad():
            model(**given)
            first = time.perf_counter() - start
            return {"first s": round(first, 3), "ms": round(1000 * seconds_of(lambda: model(**given), device), 3)}

    for compile_ in (False, True):
        yield "compiled" if compile_ else "eager", lambda compile_=compile_: measure(compile_)


def stages(device: torch.device, small: bool) -> Parts:
    def measure(config: str, arguments: list[str]) -> Row:
        seconds: dict[str, float] = {}
        rows = plan_error.compared(config, arguments, device, seconds)
        found: Row = {f"{name} s": round(took, 3) for name, took in seconds.items()}
        for phase, predicted, measured in rows:
            found |= {
                f"{phase} planned GB": round(predicted / 1e9, 3),
                f"{phase} measured GB": round(measured / 1e9, 3),
            }
        return found

    if small:
        for config, arguments in plan_error.SMALL:
            yield Path(config).stem, lambda a=(str(ROOT / config), arguments): measure(*a)
        return
    for overlays in ([], ["sd35_large"]):
        for stage in read_run(ROOT / "conf" / "real" / "run.yaml", overlays).stages:
            _, first, *rest = fit_args(stage, SHORT[stage.name], Path("unused"), {})
            call = first.removeprefix("--config="), rest
            yield " ".join([stage.name, *overlays]), lambda call=call: measure(*call)


if __name__ == "__main__":
    main()
