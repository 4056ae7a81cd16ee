"""Bad calls, drawn from seeds: each generator makes a small call that works, and damages one thing of it.

Case.args   the command line
Case.names  words of which an error must have at least one: the option, the key or the file that was damaged
Case.lost   called after exit code 0; says what is missing without a word, or nothing
"""

from __future__ import annotations

import atexit
import copy
import functools
import json
import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from random import Random
from typing import Any

import yaml
from PIL import Image
from stand_ins import RUN_YAML, STAGE_YAML, TinyStage, write_confs

from uae_lightning.cli import main
from uae_lightning.run.spec import read_stage_yaml
from uae_lightning.scenes.bootstrap import SHIPPED

NONSENSE = [
    None, -7, 0, 1, 2.5, -0.5, 1e30, math.nan, math.inf, -math.inf, 2**70, True, "", "words", "\u00e9\u2028\x00", [],
    {}, [1, [2]], {"a": 1}, {"class_path": "nowhere.Nothing"}, {"class_path": "os.getcwd"}, "${oc.env:NOWHERE}",
    "${a.b}",
]  # fmt: skip


@dataclass
class Case:
    args: list[str]
    names: tuple[str, ...]
    lost: Callable[[], str | None]


CONF = Path(__file__).parents[2] / "conf"
JUDGES = """
data: {class_path: stand_ins.TinyData, init_args: {pictures: 8}}
suites:
  unified_bench:
    class_path: uae_lightning.evaluation.unified_bench.UnifiedBench
    init_args:
      score:
        class_path: uae_lightning.rewards.unified_score.UnifiedScore
        init_args: {backbones: {closeness: {class_path: stand_ins.Closeness, init_args: {power: 1.0}}}}
  images: {class_path: uae_lightning.evaluation.image_health.ImageHealth}
samples: 4
drawings: 2
batch_size: 2
sampling: {steps: 2, guidance: 1.0}
"""
STAND_INS = ("learns", "fails_at", "pictures", "power", "suites")  # options of theirs, which check nothing

Generator = Callable[[Random, Path], Case]


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Where there is something below a node, itself left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]


def put(node: Any, place: tuple, change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change` was called with what holds the place, and its key there."""
    node = copy.deepcopy(node)
    holder = node
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return node


def untrained(folder: Path) -> str | None:
    """Why a stage that ended with code 0 has not done what it said."""
    config = folder / "config.yaml"
    if not config.is_file():
        return f"{folder} has no config.yaml"
    trainer = yaml.safe_load(config.read_text())["trainer"]
    callbacks = [callback["class_path"] for callback in trainer["callbacks"] or []]
    if "callbacks.ComponentWeights" in callbacks and not (folder / "weights").is_dir():
        return f"{folder} has no weights"
    if "callbacks.RewardCallback" in callbacks and trainer["limit_val_batches"] != 0:
        rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
        return None if rows and rows[-1]["step"] > 0 else f"{folder} was not trained, or not validated"
    return None


# ------------------------------------------------------------------------------------------------ options and YAMLs


def option(random: Random, place: Path) -> Case:
    """`fit` with nonsense for an option that its YAML or the trainer has."""
    write_confs(place)
    content = yaml.safe_load(Path("conf/stage.yaml").read_text())
    keys = [".".join(path) for path in places(content) if all(isinstance(key, str) for key in path)]
    trainer = ("max_steps", "max_epochs", "accumulate_grad_batches", "limit_train_batches",
               "limit_val_batches", "log_every_n_steps", "num_sanity_val_steps", "precision", "devices", "strategy",
               "num_nodes", "overfit_batches", "gradient_clip_val", "max_time")  # fmt: skip
    keys = [key for key in keys if not key.endswith(STAND_INS)]
    key = random.choice([*keys, *(f"trainer.{name}" for name in trainer)])
    value = random.choice([value for value in NONSENSE if value != "\u00e9\u2028\x00"])
    text = value if isinstance(value, str) else json.dumps(value)
    args = ["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=runs/one", f"--{key}={text}"]
    return Case(args, names_of(key.split("."), value), lambda: untrained(Path("runs/one")))


def stage_yaml(random: Random, place: Path) -> Case:
    """`fit` with nonsense somewhere in its YAML."""
    write_confs(place)
    args = ["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=runs/one"]
    return damaged_yaml(random, "conf/stage.yaml", args, lambda: untrained(Path("runs/one")))


def run_yaml(random: Random, place: Path) -> Case:
    """`run` with nonsense somewhere in the YAML of the run."""
    write_confs(place)
    args = ["run", "--config=conf/run.yaml", "--output=runs/all"]
    return damaged_yaml(random, "conf/run.yaml", args, lambda: missing("runs/all/summary.json"))


def study_yaml(random: Random, place: Path) -> Case:
    """`study --dry-run` with nonsense somewhere in its YAML."""
    (place / "conf").mkdir()
    content = yaml.safe_load((CONF / "reproduce.yaml").read_text())
    content["evaluation"] |= {name: str(CONF / content["evaluation"][name]) for name in ("config", "judges")}
    content["shows"] = str(CONF / content["shows"])
    for stage in (stage for arm in content["arms"] for stage in arm["stages"]):
        stage["config"] = str(CONF / stage["config"])
    Path("conf/study.yaml").write_text(yaml.safe_dump(content))
    args = ["study", "--config=conf/study.yaml", "--dry-run"]
    return damaged_yaml(random, "conf/study.yaml", args, lambda: None)


def evaluation_yaml(random: Random, place: Path) -> Case:
    """`evaluate` with nonsense somewhere in what it judges with."""
    write_confs(place)
    Path("conf/judges.yaml").write_text(JUDGES)
    args = ["evaluate", "--config=conf/stage.yaml", "--evaluation=conf/judges.yaml", "--output=figures.json"]
    return damaged_yaml(random, "conf/judges.yaml", args, lambda: missing("figures.json"))


def command(random: Random, place: Path) -> Case:
    """A command that trains nothing, with nonsense for an option."""
    write_confs(place)
    Image.new("RGB", (40, 30), "white").save("white.png")
    stage = "--config=conf/stage.yaml"
    base, options, output = random.choice([
        (["reconstruct", "white.png", stage, "--output=out.png"], ("--steps", "--guidance", "--seed"), "out.png"),
        (["evaluate", stage, "--evaluation=conf/judges.yaml", "--output=out.json"],
         ("--samples", "--drawings", "--seed", "--suite"), "out.json"),
        (["study", f"--config={CONF / 'reproduce.yaml'}", "--dry-run"], ("--seeds", "--jobs"), "white.png"),
    ])  # fmt: skip
    Path("conf/judges.yaml").write_text(JUDGES)
    name, value = random.choice(options), random.choice(("-7", "0", "nan", "inf", "-1e999", "", "words", "[]", "1.5"))
    return Case([*base, f"{name}={value}"], (name, name.strip("-")), lambda: missing(output))


def missing(file: str) -> str | None:
    return None if Path(file).is_file() else f"there is no {file}"


def damaged_yaml(random: Random, file: str, args: list[str], lost: Callable[[], str | None]) -> Case:
    content, value = yaml.safe_load(Path(file).read_text()), random.choice(NONSENSE)
    where = random.choice([where for where in places(content) if not {*STAND_INS} & {*names_of(where, None)}])
    names = names_of(where, value)
    if isinstance(where[-1], str) and random.random() < 0.3:
        names = (*names, f"{where[-1]}x")
        changed = put(content, where, lambda holder, key: holder.update({f"{key}x": holder.pop(key)}))  # misspelt
    elif random.random() < 0.2:
        changed = put(content, where, lambda holder, key: holder.pop(key))
    else:
        changed = put(content, where, lambda holder, key: holder.__setitem__(key, value))
    Path(file).write_text(yaml.safe_dump(changed, allow_unicode=True, sort_keys=False))
    return Case(args, (*names, file), lost)


def names_of(path: Any, value: Any) -> tuple[str, ...]:
    """What a message about a value at that path may call it: a key on the way there, or what the value names."""
    own = ["class_path", value["class_path"]] if isinstance(value, dict) and "class_path" in value else []
    keys = [part for key in path if isinstance(key, str) for part in key.split(".")]
    own = [f"'{key}'" for key in value] + own if isinstance(value, dict) else own
    return (*(key for key in keys if key not in ("init_args", "class_path")), *own)


# ------------------------------------------------------------------------------------------------ bytes of files


def damage(random: Random, data: bytes) -> bytes:
    """Cut, flipped, overwritten or emptied, but never the same."""
    kind, at = random.choice(("cut", "flip", "zeros", "text", "empty")), random.randrange(len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ random.randrange(1, 256)]) + data[at + 1 :]
    if kind == "zeros":
        return data[:at] + bytes(random.randrange(1, 600)) + data[at:]
    others = (b"no such thing\n", b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"null")
    return b"" if kind == "empty" else random.choice(others)


def yaml_bytes(random: Random, place: Path) -> Case:
    """`run` with a YAML whose bytes are damaged: encoding, NUL, cut in the middle, nested without end."""
    write_confs(place)
    file = Path(random.choice(("conf/run.yaml", "conf/stage.yaml")))
    file.write_bytes(damage(random, file.read_bytes()))
    content = [yaml.safe_load(text) for text in (STAGE_YAML, RUN_YAML)]
    keys = [key for where in places(content) for key in names_of(where, None)]
    args = ["run", "--config=conf/run.yaml", "--output=runs/all"]
    return Case(args, (str(file), *keys), lambda: missing("runs/all/summary.json"))


def run_folder(random: Random, place: Path) -> Case:
    """`run --resume` and others on a finished run one of whose files is damaged."""
    shutil.copytree(finished_run(), place, dirs_exist_ok=True)
    written = (path for path in Path("runs/all").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".ckpt"))
    file = random.choice(sorted(path for path in written if path.name != "value.json"))  # which a stand-in reads
    file.write_bytes(damage(random, file.read_bytes()))
    Image.new("RGB", (40, 30), "white").save("white.png")
    args, output = random.choice([
        (["run", "--config=conf/run.yaml", "--output=runs/all", "--resume"], "runs/all/summary.json"),
        (["run", "--config=conf/run.yaml", "--output=runs/all", "--resume", "--from=see"], "runs/all/summary.json"),
        (["reconstruct", "white.png", "--weights=runs/all", "--output=out.png"], "out.png"),
    ])  # fmt: skip

    def lost() -> str | None:
        return missing(output) or (used(file) if other_figures(output) else None)

    return Case(args, (file.name, file.parent.name), lost)


def other_figures(output: str) -> bool:
    """Whether a summary.json says something else than that of the finished run, seconds apart."""
    if not output.endswith("summary.json"):
        return False
    found = []
    for folder in (finished_run(), Path()):
        summary = json.loads((folder / output).read_text())
        found.append([summary["run"], [{**stage, "seconds": 0} for stage in summary["stages"]]])
    return found[0] != found[1]


@functools.cache
def finished_run() -> Path:
    """A folder with `conf` and, in `runs/all`, what `run` made of it."""
    place, before = Path(tempfile.mkdtemp()), Path.cwd()
    atexit.register(shutil.rmtree, place)
    write_confs(place)
    os.chdir(place)
    with redirect_stdout(StringIO()):
        assert main(["run", "--config=conf/run.yaml", "--output=runs/all"]) == 0
    os.chdir(before)
    return place


class Reader(TinyStage):
    """Remembers which pictures it was trained on."""

    seen: set[str] = set()

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        Reader.seen.update(batch.keys)


def shard(random: Random, place: Path) -> Case:
    """`fit` on two shards, one of which is damaged: each picture is used, or somebody says that it was not."""
    (place / "shards").mkdir()
    for number in range(2):
        with tarfile.open(f"shards/{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(8 * number, 8 * number + 8):
                for name, data in ((f"{index:03d}.png", picture(index)), (f"{index:03d}.txt", b"a picture")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
    file = Path("shards/1.tar")
    file.write_bytes(damage(random, file.read_bytes()))
    content = yaml.safe_load(STAGE_YAML)
    content["model"]["class_path"] = "generators.Reader"
    content["data"] = {"class_path": "uae_lightning.data.image_text.ImageTextData", "init_args": {
        "path": "shards", "resolution": 16, "batch_size": 2, "validation_pictures": 2, "num_workers": 0}}  # fmt: skip
    content["trainer"] |= {"max_steps": 16, "val_check_interval": 16}
    Path("stage.yaml").write_text(yaml.safe_dump(content))
    Reader.seen.clear()

    def lost() -> str | None:
        rows = [json.loads(line) for line in Path("runs/one/validation.jsonl").read_text().splitlines()]
        known = {key.split("/")[-1] for key in {*Reader.seen, *rows[0]["keys"]}}
        left = {f"{index:03d}" for index in range(16)} - known
        skipped = Path("runs/one/skipped.jsonl")
        return f"{sorted(left)} vanished" if left and not skipped.exists() else None

    args = ["fit", "--config=stage.yaml", "--trainer.default_root_dir=runs/one"]
    return Case(args, ("1.tar", "shards"), lost)


def picture(index: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (20, 16), (10 * index, 100, 255 - 10 * index)).save(file, "PNG")
    return file.getvalue()


def model_folder(random: Random, place: Path) -> Case:
    """`generate` or `reconstruct` with the shipped models, one file of which is damaged."""
    write_confs(place)
    Image.new("RGB", (40, 30), "white").save("white.png")
    part = random.choice(("encoder", "projector", "decoder"))
    shutil.copytree(SHIPPED / part, place / part)
    file = random.choice(sorted(path for path in (place / part).rglob("*") if path.is_file()))
    file.write_bytes(damage(random, file.read_bytes()))
    content = read_stage_yaml(CONF / "scenes" / "decoder_rl.yaml")
    content["model"]["init_args"]["autoencoder"][part]["init_args"]["path"] = part
    Path("stage.yaml").write_text(yaml.safe_dump(content))
    args = random.choice((["generate", "a red ball"], ["reconstruct", "white.png"]))
    args = [*args, "--config=stage.yaml", "--steps=1", "--output=out.png"]
    return Case(args, (part, file.name), lambda: missing("out.png") or used(file))


def used(file: Path) -> str | None:
    """That a damaged file was used; a text that can be read still may be somebody's edit."""
    try:
        texts = {".jinja": [], ".json": [file.read_text()], ".jsonl": file.read_text().splitlines()}.get(file.suffix)
        whole = texts is not None and all(isinstance(json.loads(text), dict) for text in texts)
    except (ValueError, RecursionError):
        whole = False
    return None if whole else f"{file} was used"


OF_CALLS: list[Generator] = [option, command, stage_yaml, run_yaml, study_yaml, evaluation_yaml]
OF_FILES: list[Generator] = [yaml_bytes, run_folder, shard, model_folder]
