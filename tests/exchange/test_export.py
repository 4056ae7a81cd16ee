"""What `uae export` writes, loaded by transformers, diffusers and peft alone and compared with this package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SCENES_PROMPTS
from diffusers import SD3Transformer2DModel
from PIL import Image
from safetensors.torch import load_file
from small_run import write_run

from uae_lightning.cli import main
from uae_lightning.exchange import lora
from uae_lightning.files import making_folder
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.scenes.scene import IMAGE_SIZE

sys.path.insert(0, str(Path(__file__).parents[1] / "conf"))
from small_models import TEXT, save_qwen, save_sd3  # noqa: E402

FOREIGN = Path(__file__).with_name("foreign.py")
PROMPT = "a small blue star on the left"  # of foreign.py
PLAIN = ["--guidance=1", "--merged"]
LORA, OTHER = {"rank": 4, "alpha": 8}, {"rank": 3, "alpha": 12}  # unlike scalings: they cannot be stacked as they are


@pytest.fixture(scope="module")
def scenes(parts_folder, tmp_path_factory):
    """As the demo: the linear codec, no guidance; the decoder in full, then a LoRA; the encoder in two rounds."""
    start = {part: {"path": str(parts_folder / part)} for part in ("encoder", "projector", "decoder")}
    start["encoder"] |= SCENES_PROMPTS
    start["decoder"] |= {"resolution": IMAGE_SIZE, "sigma_spacing": "even"}
    stages = {
        "pretrain": {"projector": "all", "decoder": "all"},
        "see": {"encoder": LORA},
        "see_again": {"encoder": OTHER | {"targets": r".*language_model.*\.(q_proj|up_proj)"}},
        "draw": {"decoder": LORA},
    }
    sampling = {"sampling": {"steps": 2, "guidance": 1.0}, "captioning": {"max_new_tokens": 8, "temperature": 0.0}}
    return write_run(tmp_path_factory.mktemp("runs") / "scenes", start, stages, **sampling)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """As Qwen2.5-VL and SD3.5: AutoencoderKL, guidance with a negative prompt, a LoRA of the decoder in two rounds.

    Their names are hub ids: but for where the run is made, no folder is called so.
    """
    place = tmp_path_factory.mktemp("place")
    torch.manual_seed(1)
    save_qwen(place / "small" / "qwen")
    save_sd3(place / "small" / "sd3")
    start = {
        "encoder": {"path": "small/qwen", "max_pixels": 7056},
        "projector": {"input_size": 32, "hidden_size": 16, "output_size": TEXT},
        "decoder": {"path": "small/sd3", "resolution": 64},
    }
    stages = {
        "draw": {"projector": "all", "decoder": LORA},
        "see": {"encoder": LORA},
        "draw_again": {"decoder": {"rank": 2, "alpha": 4}},
    }
    sampling = {"sampling": {"steps": 3, "guidance": 4.0}, "captioning": {"max_new_tokens": 8, "temperature": 0.0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return write_run(place / "real", start, stages, negative_prompt="ugly and blue", **sampling)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """[84, 84] noise: of that size no model here scales it, so that both sides see the same numbers."""
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).resize((56, 56)).save(file)
    return file


@pytest.fixture(scope="module")
def exports(scenes, real, picture, tmp_path_factory):
    """Three exports with what the code of their README.md did in a Python without this project."""
    folder = tmp_path_factory.mktemp("exports")
    found = {name: folder / name for name in ("scenes", "real", "plain")}
    for run, name, options in ((scenes, "scenes", []), (real, "real", []), (real, "plain", PLAIN)):
        assert main(["export", f"--weights={run}", f"--to={found[name]}", *options]) == 0
    for name in ("real", "plain"):  # where that code is run, the bases are there
        shutil.copytree(real.parent / "small", found[name] / "small")
    command = [sys.executable, "-I", str(FOREIGN), str(picture), *map(str, found.values())]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return found


@pytest.mark.parametrize(("name", "options"), [("scenes", []), ("real", []), ("plain", PLAIN[:1])])
def test_the_code_of_the_card_draws_what_generate_draws(name, options, exports, scenes, real, tmp_path):
    # red without `set_shift(1.0)` in DRAW, with `step - other` turned round in STEP_BY_STEP, or with `.T` left out
    file, run = tmp_path / "drawn.png", scenes if name == "scenes" else real
    assert main(["generate", PROMPT, f"--weights={run}", "--seed=3", f"--output={file}", *options]) == 0
    wanted, drawn = np.asarray(Image.open(file)), np.asarray(Image.open(exports[name] / "drawn.png"))
    assert wanted.std() > 5 and np.array_equal(wanted, drawn)
    assert "bit for bit" in (exports[name] / "README.md").read_text()


@pytest.mark.parametrize("name", ["scenes", "real"])
def test_the_code_of_the_card_captions_as_the_encoder_does(name, exports, scenes, real, picture):
    # red with indexing="xy" in PLACES, or with the prompt left in the answer
    run, settings = (scenes, SCENES_PROMPTS) if name == "scenes" else (real, {"max_pixels": 7056})
    encoder = QwenVLEncoder(str(run / ("see_again" if name == "scenes" else "see") / "weights" / "encoder"), **settings)
    images = torch.from_numpy(np.asarray(Image.open(picture), np.float32) / 255).permute(2, 0, 1)[None]
    wanted = encoder.generate(images, samples=1, temperature=0.0, max_new_tokens=8, seed=0).texts[0]
    found = json.loads((exports[name] / "foreign.json").read_text())
    assert wanted and found["caption"] == wanted


@pytest.mark.parametrize("name", ["scenes", "real"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_base_and_adapter_are_the_trained_model(name, part, exports):
    # red with `ups.append(b)` for all scalings, with the last round alone, or without lora_alpha in `config`
    found = json.loads((exports[name] / "foreign.json").read_text())
    to_merged, base_to_merged = found[part]
    assert to_merged < 1e-4 and base_to_merged > 1e-2
    if part == "decoder":
        assert found["pipeline"] < 1e-4  # load_lora_weights


def test_the_names_of_comfyui(exports, scenes):
    # red without `.alpha`, with alpha / rank in its place, or without the prefix
    export = exports["scenes"]
    state = load_file(export / "comfyui_lora.safetensors")
    base = SD3Transformer2DModel.from_pretrained(export / "base" / "decoder", subfolder="transformer").state_dict()
    merged = SD3Transformer2DModel.from_pretrained(export / "pipeline", subfolder="transformer").state_dict()
    layers = {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}
    assert len(state) == 3 * len(layers) and all(
        layer.startswith("transformer.transformer_blocks.") for layer in layers
    )
    for layer in layers:  # as comfy/weight_adapter/lora.py adds it
        down, up = state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]
        key = layer.removeprefix("transformer.") + ".weight"
        update = state[f"{layer}.alpha"].item() / down.shape[0] * up @ down
        torch.testing.assert_close(base[key] + update, merged[key], atol=1e-5, rtol=1e-5)
        base.pop(key)
    assert all(torch.equal(tensor, merged[key]) for key, tensor in base.items())


def test_what_an_export_says_of_itself(exports, scenes):
    # red with `source.base` left out of save_peft, without forget_paths, or with `on_hub` always true
    config = json.loads((exports["real"] / "encoder_lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "small/qwen" and (config["r"], config["lora_alpha"]) == (4, 8)
    assert (exports["plain"] / "encoder").exists() and not (exports["real"] / "encoder").exists()
    config = json.loads((exports["scenes"] / "encoder_lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (7, 7) and (exports["scenes"] / "encoder").exists()
    card = (exports["scenes"] / "README.md").read_text()
    assert "the rounds see, see_again stacked" in card and "stage pretrain left it, all weights trained" in card
    assert not [file for file in exports["scenes"].rglob("*.json") if str(scenes) in file.read_text()]


def test_equal_scalings_stack_without_a_change_of_numbers():
    # red with `one_scaling = False`
    ones = lora.Adapter({"a": torch.ones(2, 3)}, {"a": torch.ones(4, 2)}, 2, 4)
    more = lora.Adapter({"b": torch.ones(1, 3)}, {"b": torch.ones(4, 1)}, 1, 2)
    both = lora.stacked([ones, more])
    assert (both.rank, both.alpha, both.scaling) == (3, 6, 2.0)
    assert (
        both.down["a"].tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3] and both.up["b"].tolist() == [[0.0, 0.0, 1.0]] * 4
    )


def test_dtype_is_that_of_all_weights(scenes, tmp_path):
    # red with `dtype or tensor.dtype` turned round in write_projector
    target = tmp_path / "half"
    assert main(["export", f"--weights={scenes}", f"--to={target}", "--dtype=bfloat16"]) == 0
    files = [file for file in target.rglob("*.safetensors") if "base" not in file.parts and file.stem != "pooled"]
    assert len(files) == 7
    for file in files:
        kinds = {tensor.dtype for name, tensor in load_file(file).items() if not name.endswith(".alpha")}
        assert kinds == {torch.bfloat16}, file
    card = (target / "README.md").read_text()
    assert "nearly what" in card and "torch.float32" not in card


def test_an_export_is_whole_or_not_there(scenes, exports, tmp_path, capsys, monkeypatch):
    # red with `yield target`, without the check of settings.json, or with `except OSError: raise`
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="No space left"), making_folder(target) as folder:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []

    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    call = ["export", f"--weights={scenes}", f"--to={target}", "--overwrite"]
    assert main(call) == 2 and "no earlier export" in capsys.readouterr().err
    assert (target / "thesis.txt").read_text() == "mine"

    earlier = exports["plain"]
    assert main(["export", f"--weights={scenes}", f"--to={earlier}"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    with making_folder(earlier) as folder:
        (folder / "new").write_text("new")
        assert (earlier / "README.md").exists()  # until the new one is whole
    assert [path.name for path in earlier.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--to=x"], ["--weights"]),
        (["--weights=x"], ["--to"]),
        (["--weights=none", "--to=x"], ["none is not the folder of a run"]),
        (["--weights=x", "--to=y", "--dtype=int8"], ["int8", "bfloat16"]),
        (["--weights=x", "--to=y", "--steps=0"], ["--steps"]),
    ],
)
def test_mistakes_in_the_call(args, words, tmp_path, monkeypatch, capsys):
    # red without the two checks for a missing option
    monkeypatch.chdir(tmp_path)
    assert main(["export", *args]) in (1, 2)
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_a_base_is_where_the_environment_says(scenes, tmp_path, monkeypatch):
    # red with the text of config.yaml, where interpolations are kept
    monkeypatch.setenv("PARTS", "/somewhere")
    (tmp_path / "config.yaml").write_text((scenes / "pretrain" / "config.yaml").read_text())
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    content["model"]["init_args"]["autoencoder"]["init_args"]["encoder"]["init_args"]["path"] = (
        "${oc.env:PARTS}/encoder"
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert lora.part_settings(tmp_path / "config.yaml", "encoder")["path"] == "/somewhere/encoder"


def test_parts_and_adapters_that_cannot_be_exported(scenes, tmp_path, capsys, monkeypatch):
    # red without `check_classes`, or without the comparison of ranks
    config = scenes / "draw" / "config.yaml"
    text, call = config.read_text(), ["export", f"--weights={scenes}", f"--to={tmp_path / 'out'}"]
    try:
        config.write_text(text.replace("models.sd3.SD3Decoder", "models.other.OtherDecoder"))
        assert main(call) == 1 and "the decoder is a OtherDecoder" in capsys.readouterr().err
        config.write_text(text.replace("rank: 4", "rank: 5"))
        assert main(call) == 1 and "adapter of rank 5" in capsys.readouterr().err
        config.write_text(text.replace("    decoder:\n", "    decoded:\n"))
        assert main(call) == 2 and "config.yaml does not say what the decoder is" in capsys.readouterr().err
    finally:
        config.write_text(text)
    assert list(tmp_path.iterdir()) == []
