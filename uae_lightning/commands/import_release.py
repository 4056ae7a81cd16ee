"""The command `uae import-release`."""

from __future__ import annotations

from pathlib import Path

from uae_lightning.files import check_writable
from uae_lightning.usage import Parser

DESCRIPTION = """\
Turns the checkpoint that the authors of UAE released into the folders that encoder, projector and decoder start from.

    uae import-release --from Checkpoints --to weights/uae                    merged: the model of the paper
    uae import-release --from Checkpoints --to weights/uae_sft --no-lora      as it was before Unified-GRPO
    uae import-release --from Checkpoints --to weights/uae --base stabilityai/stable-diffusion-3.5-large

What --from holds:
  llm              config.json and weights of their Qwen2.5-VL, projector included (also found as llm_model)
  llm_lora         model-0000N-of-00003.safetensors; not needed with --no-lora
  dit              config.json and weights of their SD3 transformer
  dit_lora         adapter_config.json and adapter_model.safetensors; not needed with --no-lora
  llm_processor    tokenizer and preprocessor_config.json of Qwen/Qwen2.5-VL-3B-Instruct (also found as
                   llm_model_preprocessor, or inside llm)
  SD3              of Stable Diffusion 3.5 Large: vae, scheduler, text_encoder, text_encoder_2, tokenizer, tokenizer_2
                   (also found as SD3_model); not needed with --base

What --to gets: encoder, projector, decoder, and the adapters once more, not merged, in adapters/. Put into the YAML:

  model:
    init_args:
      autoencoder:
        encoder: {init_args: {path: weights/uae/encoder}}
        projector: {init_args: {path: weights/uae/projector}}
        decoder: {init_args: {path: weights/uae/decoder}}

The authors ran it in bfloat16, and without a mask of text padding (the decoder's mask_padding: false).
Memory: about one shard of 5 GB. Disk: as much as llm and dit.
"""


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.exchange.release import import_release
    from uae_lightning.models.adapters import to_dtype

    import_release(
        options.source,
        options.target,
        base=options.base,
        lora=options.lora,
        dtype=to_dtype(options.dtype) if options.dtype else None,
        report=lambda line: print(line, flush=True),
    )
    print("Imported. For the YAML:")
    for part in ("encoder", "projector", "decoder"):
        print(f"  model.autoencoder.{part}.path: {options.target / part}")


def parse(args: list[str]):
    parser = Parser(prog="uae import-release", description=DESCRIPTION)
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="the release, or its hub id (needed)"
    )
    parser.add_argument("--to", dest="target", type=Path, metavar="FOLDER", help="to be made (needed)")
    parser.add_argument("--base", metavar="FOLDER", help="of SD3.5-large, or its hub id; default: SD3 inside --from")
    parser.add_argument("--no-lora", dest="lora", action="store_false", help="leave llm_lora and dit_lora unread")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; default: as they are stored"
    )
    options = parser.parse(args)
    if options.source is None:
        parser.error("name the folder of the release with --from")
    if options.target is None:
        parser.error("name the folder to make with --to")
    if not options.target.exists():  # else it is refused
        check_writable(options.target, "--to")
    return options
