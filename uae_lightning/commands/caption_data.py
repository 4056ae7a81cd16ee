"""`uae caption-data`: what is asked for, whether it fits what the folder holds, and what comes next."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uae_lightning.files import enough_space
from uae_lightning.prepare.part import Part
from uae_lightning.ranges import Count, NonNegative, Seed, Share
from uae_lightning.usage import Parser, UsageError

DESCRIPTION = """\
Captions pictures at length with any image-text-to-text model of transformers, drops what is of no use, and writes
WebDataset shards and a captions.jsonl that `uae fit` reads. (Paper: 700,000 pictures, over 250 words each.)

    uae caption-data --from photos --to captioned --model Qwen/Qwen2.5-VL-7B-Instruct --batch-size 16
    uae caption-data --from photos --to captioned --model OpenGVLab/InternVL3-78B-hf --quantization 4bit
    uae caption-data --from 'web/{000..127}.tar' --to captioned --model MODEL --part 2/8     on the second of 8 machines
    uae caption-data --from scenes --to captioned --model shipped:scenes/encoder --prompt "describe the picture" \\
        --min-words 2 --max-pixels 4096                                                      small, on a CPU
    uae caption-data --from photos --to captioned --model MODEL --duplicates semantic --duplicate-bits 6

Stopped, killed, or out of disk: the same command again goes on behind the last finished shard, and ends with the same
set. Try a few hundred pictures first: report.json and dropped.jsonl say what was dropped and why.
"""
PROMPT = (
    "Describe this picture in one long paragraph of at least 300 words. Go from the main subject to the background: "
    "what there is and how many, where each thing stands and next to what, colors, materials, light, viewpoint and "
    "style. Transcribe text in double quotes. Say only what can be seen."
)
DUPLICATE_BITS = {"dct": 3, "semantic": 6}  # by default: what JPEG and scaling change, measured in docs/lab-notes.md
OFF = "off"
FEWEST_PIXELS = 3200  # images.MIN_SIDE squared times images.MAX_ASPECT


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="uae caption-data", description=DESCRIPTION)
    add_files(parser.add_argument_group("pictures and folders"))
    add_model(parser.add_argument_group("model"))
    add_filters(parser.add_argument_group("what is dropped"))
    options = parser.parse(args)
    if options.duplicate_judge and options.duplicates != "semantic":
        parser.error("--duplicate-judge is the network of --duplicates semantic: ask for that, or leave it out")
    asked = DUPLICATE_BITS[options.duplicates] if options.duplicate_bits is None else options.duplicate_bits
    options.duplicate_bits = None if asked == OFF else asked
    if options.min_words > options.max_words:
        parser.error(f"--min-words ({options.min_words}) must not exceed --max-words ({options.max_words})")
    if options.max_pixels < FEWEST_PIXELS:
        parser.error(f"--max-pixels must be at least {FEWEST_PIXELS} (long pictures keep 8 pixels across)")
    return options


def add_files(group) -> None:
    add = group.add_argument
    add("--from", dest="source", required=True, metavar="PICTURES", help="folder (searched below too), .jsonl, .tar "
        "shards (`{000..127}.tar`, `*.tar`, URLs), or a folder saved by `datasets`")  # fmt: skip
    add("--to", type=Path, required=True, metavar="FOLDER", help="new, or one to go on with")
    add("--image-column", default="image", metavar="NAME", help="in a .jsonl or `datasets`; default: %(default)s")
    add("--part", type=Part.read, default=Part(), metavar="I/N", help="only the I-th of N parts, into "
        "FOLDER/part-I-of-N; duplicates are found within a part")  # fmt: skip
    add("--shard-size", type=Count, default=1000, metavar="N", help="pictures read for a shard, which is what a "
        "kill can cost; default: %(default)s")  # fmt: skip
    add("--max-skipped", type=Share, default=0.05, metavar="SHARE", help="of unusable files, above which it stops; "
        "default: %(default)s")  # fmt: skip


def add_model(group) -> None:
    add = group.add_argument
    add("--model", required=True, metavar="MODEL", help="hub id, folder or shipped:NAME")
    add("--prompt", default=PROMPT, metavar="TEXT", help="default: asks for a long paragraph of what can be seen")
    add("--batch-size", type=Count, default=8, metavar="N", help="pictures at a time; default: %(default)s")
    add("--max-pixels", type=Count, default=1_003_520, metavar="N", help="larger pictures are scaled down for the "
        "model; default: %(default)s, 1,280 tokens of Qwen2.5-VL")  # fmt: skip
    add("--max-new-tokens", type=Count, default=1024, metavar="N", help="of a caption; default: %(default)s")
    add("--temperature", type=NonNegative, default=0.0, metavar="T", help="0 is greedy; default: %(default)s")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights; auto: "
        "bfloat16 on a GPU, float32 without")  # fmt: skip
    add("--quantization", choices=("none", "8bit", "4bit"), default="none", help="by bitsandbytes")
    add("--seed", type=Seed, default=0, metavar="N", help="of sampled captions; default: %(default)s")


def add_filters(group) -> None:
    add = group.add_argument
    add("--min-words", type=Count, default=250, metavar="N", help="shorter captions; in Chinese and Japanese each "
        "character is a word; default: %(default)s")  # fmt: skip
    add("--max-words", type=Count, default=600, metavar="N", help="longer captions; default: %(default)s")
    add("--max-repetition", type=Share, default=0.2, metavar="SHARE", help="captions of which more than this is runs "
        "of 4 words said before; default: %(default)s")  # fmt: skip
    add("--duplicates", choices=tuple(DUPLICATE_BITS), default="dct", help="what tells that a picture was seen "
        "before: a 64-bit hash of its frequencies (dct), or of what a network sees in it (semantic); "
        "default: %(default)s")  # fmt: skip
    add("--duplicate-bits", type=bits, metavar="BITS", help="pictures whose hash differs from an earlier one's in at "
        "most BITS bits, 0 to 15; off: the same bytes only; default: 3 (dct), 6 (semantic)")  # fmt: skip
    add("--duplicate-judge", type=Path, metavar="YAML", help="network of --duplicates semantic, such as "
        "conf/scenes/duplicate_judge.yaml; default: DINOv2-large")  # fmt: skip


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.prepare.caption_settings import begin_or_go_on, settings
    from uae_lightning.prepare.caption_writer import claimed  # imports torch, which `--help` need not wait for

    folder = options.to
    if options.part.of > 1:
        folder = folder / f"part-{options.part.number}-of-{options.part.of}"
    with own_option_names(), enough_space(folder):
        source = opened(options)
        with claimed(folder):
            begin_or_go_on(folder, settings(options, source))
            counts = caption_data(options, source, folder).run()
    print_end(options, source.without(), folder, counts)


def opened(options: argparse.Namespace):
    from uae_lightning.data.opening import open_source
    from uae_lightning.data.sources import Columns

    return open_source(options.source, Columns(options.image_column, caption=""))  # captions it may have are not read


def caption_data(options: argparse.Namespace, source, folder: Path):
    from uae_lightning.prepare.caption_reading import Reading
    from uae_lightning.prepare.caption_set import CaptionData
    from uae_lightning.prepare.filters import CaptionFilter

    def load_captioner():
        from uae_lightning.prepare.captioner import Captioner

        names = ("model", "prompt", "max_new_tokens", "temperature", "dtype", "quantization")
        return Captioner(**{name: getattr(options, name) for name in names})

    names = ("model", "duplicate_bits", "batch_size", "shard_size", "max_pixels", "max_skipped", "seed")
    reading = Reading(source, options.part.number, options.part.of)
    return CaptionData(
        reading=reading,
        load_captioner=load_captioner,
        load_hash=lambda: hash_of(options, reading, folder),
        caption_filter=CaptionFilter(options.min_words, options.max_words, options.max_repetition),
        folder=folder,
        **{name: getattr(options, name) for name in names},
    )


def hash_of(options: argparse.Namespace, reading, folder: Path):
    """What tells whether pictures are alike. A semantic hash is fitted once, on the first pictures, and kept."""
    from uae_lightning.prepare.near_duplicates import perceptual_hash
    from uae_lightning.prepare.semantic_hash import FILE, SemanticHash, first_embeddings
    from uae_lightning.rewards.dino_similarity import DinoSimilarity
    from uae_lightning.rewards.vision_features import EmbeddingSimilarity
    from uae_lightning.run.loading import load_reward

    if options.duplicates == "dct":
        return perceptual_hash
    path = options.duplicate_judge
    judge = load_reward(path, "--duplicate-judge", EmbeddingSimilarity) if path else DinoSimilarity()
    judge = judge.to(best_device()).eval()
    if not (folder / FILE).exists():
        SemanticHash.fit(judge, first_embeddings(judge, reading, options.max_pixels)).save(folder / FILE)
    return SemanticHash.load(judge, folder / FILE)


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def print_end(options: argparse.Namespace, left_out: str, folder: Path, counts) -> None:
    print(counts.table())
    if left_out:
        print("not looked at:", left_out)
    print(f"\n{folder}: shards, captions.jsonl, dropped.jsonl, skipped.jsonl, report.json")
    if counts.dropped and (most := counts.dropped.most_common(1)[0])[1] > counts.seen / 2:
        print(
            f"more than half was dropped as {most[0]!r}: look into dropped.jsonl before you caption more "
            "(other limits, another --prompt or --model go into another --to)"
        )
    path = str(folder) if options.part.of == 1 else f"{options.to}/part-*/*.tar"
    if counts.kept:
        print(
            "next: uae fit --config conf/real/decoder_pretrain.yaml "
            f"--data.init_args.path {shlex.quote(path)} --data.init_args.validation_path null"
        )


# ---------------------------------------------------------------------------------------------------- errors


@contextmanager
def own_option_names() -> Iterator[None]:
    """`data` speaks of the init_args of a data module: here they are options."""
    names = {"path": "--from", "max_skipped": "--max-skipped", "image_column": "--image-column"}
    try:
        yield
    except (UsageError, FileNotFoundError) as error:
        text = re.sub(r"data\.init_args(?:\.(\w+))?", lambda found: names.get(found[1], "--from"), str(error))
        raise type(error)(text) from error


# ---------------------------------------------------------------------------------------------------- values of options


def bits(text: str) -> int | str:
    if text == OFF:
        return OFF
    if not text.isdecimal() or int(text) > 15:
        raise argparse.ArgumentTypeError(f"must be 0 to 15, or off, got {text!r}")
    return int(text)
