"""The command line of `uae export`, and the folder it writes: whole or not there."""

from __future__ import annotations

from pathlib import Path

from uae_lightning.files import check_writable
from uae_lightning.ranges import Count, NonNegative
from uae_lightning.usage import Parser, UsageError

# Types that the package gguf writes and diffusers computes with: 8.5, 6, 5.5, 5 and 4.5 bits a weight.
GGUF = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
DESCRIPTION = """\
Writes what a run trained so that transformers, diffusers, peft and ComfyUI load it without this package.

    uae export --weights runs/demo --to exported                          adapters, projector, prompts and pipeline
    uae export --weights runs/demo --to exported --merged                 the merged encoder too
    uae export --weights runs/demo --to exported --dtype bfloat16         at half the size
    uae export --weights runs/demo --to exported --gguf Q8_0              the decoder in GGUF too
    uae export --weights runs/demo --to exported --push OWNER/NAME        and onto the hub, private

What --to gets:
  README.md                  a model card: code to copy that draws and captions, settings, where it all comes from
  settings.json              prompts, sampling and captions as `uae generate` and the training had them
  encoder_lora/              the encoder's adapter, for peft, vLLM and others
  decoder_lora/              the decoder's adapter, for diffusers; of SD3 also comfyui_lora.safetensors, for ComfyUI
  projector/  processor/     the MLP between them; tokenizer and image processor
  pipeline/                  a pipeline of diffusers: adapters merged, conditioned on the projected states
  encoder/                   merged weights, with --merged or where the adapter's base is not on the hub
  decoder.gguf               with --gguf: the decoder, adapters merged, quantised, for `from_single_file` of diffusers
  base/                      what the adapters belong to, where it is neither on the hub nor a folder of yours

On a CPU, the code in README.md draws what `uae generate` draws, bit for bit. Where several stages trained an adapter of
one part, they are stacked into one, so that it belongs to weights that others can get.

Nothing is sent anywhere without --push, which needs a token that may write (`hf auth login`). README.md and
settings.json name what the run started from, local folders too: read them before you make a repository public.
"""


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.exchange.folder import write_export
    from uae_lightning.exchange.gguf_file import gguf_module
    from uae_lightning.exchange.push import check_push, push
    from uae_lightning.files import making_folder

    if options.gguf:
        gguf_module()
    if options.push:
        check_push(options.push)
    with making_folder(options.target) as folder:
        write_export(folder, options)
    print(f"Exported to {options.target}; {options.target / 'README.md'} shows how to use it.", flush=True)
    if options.push:
        print(f"Uploaded to {push(options.target, options.push, options.public)}")


def parse(args: list[str]):
    parser = Parser(prog="uae export", description=DESCRIPTION)
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="of a run (needed)")
    parser.add_argument("--to", dest="target", type=Path, metavar="FOLDER", help="to be made (needed)")
    parser.add_argument("--merged", action="store_true", help="write the merged encoder in any case")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; default: that of the run"
    )
    parser.add_argument("--steps", type=Count, help="of the sampler, in settings.json; default: the run's")
    parser.add_argument("--guidance", type=NonNegative, help="in settings.json, 1 is none; default: the run's")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--gguf", choices=GGUF, help="write the decoder in this type of GGUF too; the extra gguf")
    parser.add_argument("--license", metavar="ID", help="of the model card, as the hub calls it; default: other")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this model repository of the hub; private")
    parser.add_argument("--public", action="store_true", help="with --push: a repository that everybody may see")
    options = parser.parse(args)
    if options.public and not options.push:
        parser.error("--public belongs to --push OWNER/NAME")
    if options.weights is None:
        parser.error("name the folder of a run with --weights")
    if options.target is None:
        parser.error("name the folder to make with --to")
    check_target(options.target, options.overwrite)
    return options


def check_target(target: Path, overwrite: bool) -> None:
    """Raises UsageError where the export would replace what it must not, or cannot be made."""
    if not target.is_dir():
        check_writable(target, "--to")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "settings.json").is_file() or not (target / "projector").is_dir():
        raise UsageError(f"--to {target} exists and is no earlier export: name a folder that is to be made")
    if not overwrite:
        raise UsageError(f"--to {target} holds an earlier export: --overwrite replaces it, or name another folder")
