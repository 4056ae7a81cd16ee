"""Every YAML in conf/ is parsed and built without weights; those of the real models run two steps with small ones."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import planning_of_runs
import pytest
import small_decoders
import small_encoders
import torch
import yaml
from jsonargparse import Namespace
from small_models import HIDDEN, TEXT, save_models, save_pictures

from uae_lightning.planning.stage_plan import GB
from uae_lightning.run import spec as run_spec
from uae_lightning.run.compiled import parse_evaluation
from uae_lightning.run.spec import EvaluationSpec, StageSpec
from uae_lightning.run.stage_cli import parse_stage, run_stage
from uae_lightning.stages.common import Stage
from uae_lightning.study.cost import settings_of
from uae_lightning.usage import UsageError

SMALL_RUNS = [  # a stage of conf/real and what is laid over it
    ("decoder_pretrain", []),
    ("decoder_pretrain", ["80gb", "decoder_pretrain_full"]),
    ("rewrite_sft", []),
    ("rewrite_rl", []),
    ("encoder_rl", []),
    ("encoder_rl", ["qwen7b", "sd35_large"]),
    ("cold_start", []),
    ("encoder_rl", ["encoder_rl_replay"]),
    ("encoder_rl", ["encoder_rl_levels"]),
    ("decoder_rl", []),
    ("decoder_rl", ["qwen7b", "sd35_large", "decoder_rl_fast"]),
    ("decoder_rl", ["decoder_rl_cycle"]),
    ("decoder_pretrain", ["sana"]),
    ("encoder_rl", ["sana"]),
    ("decoder_rl", ["sana"]),
    ("decoder_pretrain", ["flux2"]),
    ("encoder_rl", ["flux2"]),
    ("decoder_rl", ["flux2"]),
    ("decoder_pretrain", ["z_image"]),
    ("encoder_rl", ["z_image"]),
    ("decoder_rl", ["z_image"]),
    ("decoder_pretrain", ["qwen_image"]),
    ("encoder_rl", ["qwen_image"]),
    ("decoder_rl", ["qwen_image"]),
    ("decoder_rl", ["decoder_rl_prompts"]),
    ("encoder_rl", ["encoder_rl_gspo"]),
    ("encoder_rl", ["encoder_rl_cispo"]),
    ("encoder_rl", ["encoder_rl_sapo"]),
    ("encoder_rl", ["encoder_rl_guard"]),
    ("decoder_rl", ["decoder_rl_dance", "decoder_rl_replay"]),
    ("decoder_matching", []),
    ("joint_rl", []),
    ("decoder_pretrain", ["qwen3_4b"]),
    ("encoder_rl", ["qwen3_4b"]),
    ("decoder_rl", ["qwen3_4b", "sana"]),
    ("decoder_pretrain", ["qwen35_4b"]),
    ("encoder_rl", ["qwen35_4b"]),
    ("decoder_rl", ["qwen35_4b", "sana"]),
    ("decoder_pretrain", ["intern_2b"]),
    ("encoder_rl", ["intern_2b"]),
    ("decoder_rl", ["intern_2b", "sana"]),
]

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
RUN = CONF / "real" / "run.yaml"
PRODUCT = list(itertools.product(["qwen3b", "qwen7b"], ["sd35_medium", "sd35_large"], ["24gb", "80gb", "8x80gb"]))
STAGES = ["decoder_pretrain", "encoder_rl", "decoder_rl"]
ENCODERS = dict.fromkeys(["qwen3_2b", "qwen3_4b", "qwen3_8b"], "qwen3_vl")
ENCODERS |= dict.fromkeys(["qwen35_0_8b", "qwen35_2b", "qwen35_4b"], "qwen3_5") | {"intern_2b": "intern_vl"}
DECODERS = ["sana", "flux2", "z_image", "qwen_image"]
REWARDS = [["levels", "cycle"], ["qa"], ["guard"]]
OPTIONS = [["cached"], ["fast"], ["replay", "decoder_replay"], *REWARDS, ["gspo", "dance"], ["prompts"]]
PLANNED = [
    *PRODUCT,
    ("12gb",),
    *((*names, "24gb") for names in [*OPTIONS, *([name] for name in [*DECODERS, "qwen3_4b"])]),
]
ALONE = ["rewrite_sft", "rewrite_rl", "cold_start", "joint_rl", "decoder_matching"]  # in no run of conf/real
CHOSEN = [
    *PLANNED,
    ("buckets",),
    ("cached", "no_encoder"),
    ("cispo",),
    ("sapo",),
    ("prompts", "judge"),
    ("prompts", "ocr"),
    ("vllm",),
    ("qwen3_2b",),
    ("qwen3_8b",),
    ("wandb",),
    ("qwen35_0_8b",),
    ("qwen35_2b",),
    ("qwen35_4b",),
    ("intern_2b",),
]


# ------------------------------------------------------------------------------------------------ without weights


@pytest.mark.parametrize(
    ("file", "overlays"),
    [*((file, ()) for file in FILES), *((RUN, chosen) for chosen in CHOSEN)],
    ids=lambda value: str(value.relative_to(CONF)) if isinstance(value, Path) else "+".join(value),
)
def test_every_conf_parses_and_builds_without_weights(file, overlays, built, monkeypatch):
    # red with any key of any YAML misspelt, a hub model without a config in models/architectures, or an encoder, a
    # projector and a decoder that do not fit, such as qwen7b.yaml without its input_size
    monkeypatch.chdir(CONF.parent)
    for initialise in ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"):  # nothing to fill: saves half
        monkeypatch.setattr(torch.nn.init, initialise, lambda tensor, *args, **kwargs: tensor)
    for stage in stages_of(file, overlays):
        config = parsed(stage).model
        key = json.dumps(config.as_dict())
        if key not in built:
            with torch.device("meta"):
                built[key] = parser().instantiate(Namespace(model=config)).model
        model = built[key]
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert any(parameter.requires_grad for parameter in getattr(model, model.hands_on[-1]).parameters())


@pytest.mark.parametrize("overlays", PLANNED, ids="+".join)
def test_every_run_of_the_real_models_is_planned(overlays, planned):
    # red if a YAML asks for what a stage, an optimiser or a judge cannot do at full size, or no longer fits its card
    card = {"12gb": 12, "24gb": 24, "80gb": 80, "8x80gb": 80}[overlays[-1]] * GB
    assert all(bytes_ < card for bytes_ in planned[overlays].result().values())


@pytest.mark.parametrize("stage", ALONE)
def test_stages_of_no_run_are_planned(stage, planned):
    # red if the plan has no prompts for the batch, or a stage does not fit its card
    assert planned[stage].result()[stage] < 24 * GB


@pytest.fixture(scope="module")
def planned():
    """All of them, on two cores: it takes minutes."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        needed = planning_of_runs.needed
        stages = {name: pool.submit(needed, CONF / "real" / f"{name}.yaml", ()) for name in ALONE}
        yield stages | {overlays: pool.submit(needed, RUN, overlays) for overlays in PLANNED}


def stages_of(file: Path, overlays: tuple[str, ...] = ()) -> list[StageSpec]:
    """Of a run's YAML or of a stage's, and the stage STAGE.yaml that STAGE_MORE.yaml lies over; none of other overlays,
    of `uae study` or of `uae evaluate`."""
    keys = keys_of(file)
    if "stages" in keys:
        return run_spec.read_run(file, overlays).stages
    below = [other for other in FILES if other.parent == file.parent and file.stem.startswith(f"{other.stem}_")]
    if lays_over(keys) and (below := [other for other in below if is_stage(keys_of(other))]):
        return [StageSpec(file.stem, below[0], {}, (file,))]
    return [StageSpec(file.stem, file, {})] if is_stage(keys) else []


def is_stage(keys: dict) -> bool:
    return "class_path" in keys.get("model", {})


def lays_over(keys: dict) -> bool:
    return "suites" not in keys and bool({"model", "data", "trainer"} & {*keys}) and not is_stage(keys)


def keys_of(file: Path) -> dict:
    return yaml.safe_load(file.read_text())


@functools.cache
def parser():
    """That of `uae fit`, made once: making it is what takes the time."""
    return parse_stage(["fit", f"--config={CONF / 'real' / 'encoder_rl.yaml'}"])._parser("fit")


def parsed(stage: StageSpec) -> Namespace:
    return parser().parse_args(run_spec.fit_args(stage, [], Path("unused"), {})[1:])


@pytest.fixture(scope="module")
def built() -> dict[str, Stage]:
    """Stages on the meta device; many YAMLs share one."""
    return {}


@pytest.mark.parametrize(
    ("name", "suites"),
    [
        ("evaluation", ["unified_bench", "geneval", "language", "images"]),
        ("refinement_evaluation", ["geneval", "geneval_best_of_4"]),
        (
            "benchmarks_evaluation",
            ["geneval", "geneval2", "dpg_bench", "wise_verified", "wise", "unigenbench", "pairwise_captions"],
        ),
    ],
)
def test_the_judges_of_real_models_have_the_options_they_are_given(name, suites):
    # red with a suite, backbone, verifier or option of another name in the YAML
    spec = EvaluationSpec(Path(f"conf/real/{name}.yaml"), {})
    assert list(parse_evaluation(spec).evaluation.suites) == suites


def test_every_overlay_is_used():
    # red with an overlay that no combination lays over anything, or a name of run.yaml that no test chooses
    choices, overlays = run_spec.read_overlays(yaml.safe_load(RUN.read_text()), STAGES, RUN)
    assert {name for choice in choices for name in choice if name} == {name for chosen in CHOSEN for name in chosen}
    (qwen3b, qwen7b, *encoders), (*sd3, sana, flux2, z_image, qwen_image), (card, small, *cards) = choices[:3]
    assert list(itertools.product([qwen3b, qwen7b], sd3, [card, *cards])) == PRODUCT and small == "12gb"
    assert [sana, flux2, z_image, qwen_image] == DECODERS and encoders == [*ENCODERS]
    others = ["run_mar", "run_janus", "codebook_pretrain_levels"]  # of stages in no choice of run.yaml
    runs = [*((RUN, chosen) for chosen in CHOSEN), *((RUN.with_name(f"{name}.yaml"), ()) for name in others)]
    used = {path for run, chosen in runs for stage in stages_of(run, chosen) for path in stage.overlays}
    assert used == {file for file in FILES if file.parent.name == "real" and lays_over(keys_of(file))}


def test_later_configs_count_and_options_count_more(tmp_path):
    # red with the configs in another order in fit_args, or `base | overlay` turned in spec.overlaid
    (tmp_path / "first.yaml").write_text(
        "{model: {init_args: {group_size: 5, micro_batch: 5}}, trainer: {max_steps: 5}}"
    )
    (tmp_path / "second.yaml").write_text("{model: {init_args: {micro_batch: 6}}, trainer: {max_steps: 6}}")
    (tmp_path / "run.yaml").write_text(
        f"""{{name: run, stages: [{{name: see, options: {{trainer.max_steps: 7}},
        config: [{CONF / "scenes" / "encoder_rl.yaml"}, first.yaml, second.yaml]}}]}}"""
    )
    [stage] = run_spec.read_run(tmp_path / "run.yaml").stages
    for settings in (parsed(stage).as_dict(), settings_of(stage)):
        args = settings["model"]["init_args"]
        assert (args["group_size"], args["micro_batch"], settings["trainer"]["max_steps"]) == (5, 6, 7)
        parts = args["autoencoder"]
        encoder = parts.get("init_args", parts)["encoder"]  # the parser spells the class out
        assert encoder["class_path"].endswith("QwenVLEncoder") and args["learn"]["encoder"]["rank"] == 32


def test_a_yaml_includes_parts_and_lays_its_own_keys_over_them(tmp_path):
    # red with `base | overlay` turned in overlaid, without the loader of stage_cli, or from the wrong folder
    parts = yaml.safe_load((CONF / "scenes" / "autoencoder.yaml").read_text())
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(parts))
    stage = yaml.safe_load((CONF / "scenes" / "encoder_rl.yaml").read_text())
    del stage["trainer"]["callbacks"]
    stage["model"]["init_args"]["autoencoder"] = {
        "include": "parts.yaml",
        "decoder": {"init_args": {"resolution": 32}},
        "captioning": {"max_new_tokens": 7},
    }
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage))
    over = "{model: {init_args: {autoencoder: {decoder: {init_args: {dtype: bfloat16}}}}}}"
    (tmp_path / "over.yaml").write_text(over)
    spec = StageSpec("see", tmp_path / "stage.yaml", {"model.autoencoder.sampling.steps": 5}, (tmp_path / "over.yaml",))
    found = parsed(spec).model.init_args.autoencoder.init_args.as_dict()
    decoder = {"path": "shipped:scenes/decoder", "resolution": 32, "dtype": "bfloat16", "sigma_spacing": "even"}
    assert decoder.items() <= found["decoder"]["init_args"].items()
    assert found["captioning"]["temperature"] == 1.0 and found["captioning"]["max_new_tokens"] == 7
    assert found["sampling"]["steps"] == 5
    assert settings_of(spec)["model"]["init_args"]["autoencoder"]["decoder"]["init_args"]["resolution"] == 32


def test_another_class_laid_over_an_included_one_starts_afresh():
    # red without the look at class_path in overlaid
    base = {"decoder": {"class_path": "A", "init_args": {"path": "x", "resolution": 64}}}
    over = {"decoder": {"class_path": "B", "init_args": {"path": "y"}}}
    assert run_spec.overlaid(base, over) == over
    over = {"decoder": {"class_path": "A", "init_args": {"path": "y"}}}
    assert run_spec.overlaid(base, over)["decoder"]["init_args"] == {"path": "y", "resolution": 64}


@pytest.mark.parametrize(
    ("text", "words"), [(None, "parts.yaml does not exist: include"), ("[]", "cannot be included")]
)
def test_what_cannot_be_included(text, words, tmp_path):
    # red without either look in `included`
    (tmp_path / "stage.yaml").write_text("model: {init_args: {autoencoder: {include: parts.yaml}}}")
    if text:
        (tmp_path / "parts.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        parse_stage(["fit", f"--config={tmp_path / 'stage.yaml'}"])


@pytest.mark.parametrize("config", ["[]", "[a.yaml, 3]", "{a: b}"])
def test_config_is_a_yaml_or_a_list_of_them(config, tmp_path):
    # red without the check in read_configs
    (tmp_path / "run.yaml").write_text(f"{{name: run, stages: [{{name: see, config: {config}}}]}}")
    with pytest.raises(UsageError, match="config of stage 1.*list of YAMLs"):
        run_spec.read_run(tmp_path / "run.yaml")


# ------------------------------------------------------------------------------------------------ two steps


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    save_models(folder)
    small_encoders.save_qwen3_vl(folder / "qwen3_vl")
    small_encoders.save_qwen3_5(folder / "qwen3_5")
    small_encoders.save_intern_vl(folder / "intern_vl")
    for name in DECODERS:
        getattr(small_decoders, f"save_{name}")(folder / name)
    save_pictures(folder / "pictures", 6, seed=0)
    save_pictures(folder / "held_out", 2, seed=1)
    pairs = [{"image": f"pictures/{i}.png", "prompt": "a ball", "caption": f"a large red ball {i}"} for i in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "prompts.txt").write_text("".join(f"a photo of {number} balls\n" for number in range(6)))
    return folder


SWAPS = {  # in the text of callbacks and auxiliaries
    "openai/clip-vit-large-patch14": "{small}/clip",
    "facebook/dinov2-large": "{small}/dino",
    '"yuvalkirstain/PickScore_v1"': '"{small}/clip", "processor": null',
    "Qwen/Qwen2.5-VL-3B-Instruct": "{small}/qwen",
    '"dtype": "bfloat16"': '"dtype": "float32"',
    "[5, 6, 7]": "[0]",  # of DINOv2's layers the small one has three
    "[22, 23, 24]": "[1, 2]",
    '"cells": 4': '"cells": 2',
    "data/replay": "{small}/pictures",
    "data/rewriting.jsonl": "{small}/pairs.jsonl",
    "data/held_out": "{small}/held_out",
    '"resolution": 512': '"resolution": 64, "validation_pictures": 2',
    '"batches": 32': '"batches": 2',
}


def swapped(stage: str, overlays: list[str], small: Path) -> list[str]:
    """The YAML's models become small ones of the same classes, on pictures of 64 pixels; all else is the YAML's."""
    files = (run_spec.read_stage_yaml(CONF / "real" / f"{name}.yaml") for name in (stage, *overlays))
    config = functools.reduce(run_spec.overlaid, files)
    trainer, more = config["trainer"], config["model"]["init_args"].get("auxiliaries")
    callbacks, auxiliaries = json.dumps(trainer["callbacks"]), json.dumps(more)
    for large, little in SWAPS.items():
        little = little.replace("{small}", str(small))
        callbacks, auxiliaries = callbacks.replace(large, little), auxiliaries.replace(large, little)
    options = {
        "model.autoencoder.encoder.path": small
        / next((ENCODERS[name] for name in overlays if name in ENCODERS), "qwen"),
        "model.autoencoder.encoder.dtype": "float32",  # without AVX512-BF16 bf16 is emulated, 60 times slower
        "model.autoencoder.projector.input_size": HIDDEN,
        "model.autoencoder.projector.output_size": TEXT,
        "model.autoencoder.decoder.path": small / next((name for name in overlays if name in DECODERS), "sd3"),
        "model.autoencoder.decoder.dtype": "float32",
        "model.autoencoder.decoder.resolution": 64,
        "model.autoencoder.captioning.max_new_tokens": 8,
        "data.init_args.path": small / "pictures",
        "data.init_args.validation_path": small / "held_out",
        "data.init_args.resolution": 64,
        "data.init_args.batch_size": 1,
        "data.init_args.validation_pictures": 2,
        "data.init_args.num_workers": 0,
        "trainer.precision": "32-true",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2 * trainer.get("accumulate_grad_batches", 1),
        "trainer.callbacks": callbacks,
        "model.init_args.auxiliaries": auxiliaries,
    }
    if stage in ("decoder_rl", "decoder_matching"):
        options["model.init_args.group_size"] = 8  # 24 take a minute
    if stage == "decoder_rl" and {*overlays} & {*DECODERS}:
        options |= {"model.init_args.group_size": 2, "model.autoencoder.sampling.steps": 3}
        options["model.init_args.window"] = "[0, 2]"
    if "decoder_rl_prompts" in overlays or stage == "rewrite_rl":
        options["data.init_args.path"] = small / "prompts.txt"
        for key in ("validation_path", "resolution", "num_workers"):  # of pictures
            del options[f"data.init_args.{key}"]
    if stage == "rewrite_sft":
        options["data.init_args.path"] = small / "pairs.jsonl"
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.mark.parametrize(
    ("stage", "overlays"),
    SMALL_RUNS,
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_two_steps_with_small_models(stage, overlays, small, tmp_path):
    """Sampling, guidance, window, KL, quantised weights, optimiser, EMA and callbacks as the YAMLs have them.

    Red where a YAML asks for what a part cannot do, such as `group_size: 24` with `micro_batch: 5`.
    """
    configs = [f"--config={CONF / 'real' / name}.yaml" for name in (stage, *overlays)]
    place = f"--trainer.default_root_dir={tmp_path}"
    module = run_stage(["fit", *configs, *swapped(stage, overlays, small), place]).model
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2]
    assert {path.name for path in (tmp_path / "weights").iterdir()} == set(module.trained)
    assert module.health.get("first_log_ratio", 0.0) <= 1e-5
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert len(module.optimizers(use_pl_optimizer=False).state) == len(trainable)  # each one had a gradient
