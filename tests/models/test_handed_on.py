"""Adapters handed on by reference are the weights that were trained, bit for bit; saving takes no second model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SCENES_PROMPTS, adapted
from diffusers import SD3Transformer2DModel
from diffusers.models import embeddings
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from uae_lightning.models import tensor_files
from uae_lightning.models.adapters import MergedState, add_lora
from uae_lightning.models.handed_on import BASE, save_adapter, source_of
from uae_lightning.models.loading import load
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.saving import save_diffusers
from uae_lightning.models.sd3 import ATTENTION_PROJECTIONS, SD3Decoder
from uae_lightning.models.tensor_files import write_shards
from uae_lightning.models.weight_files import SUMS, seal
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import LoRA

KINDS = {
    "encoder": lambda path, **options: QwenVLEncoder(str(path), **SCENES_PROMPTS, **options),
    "decoder": lambda path, **options: SD3Decoder(str(path), IMAGE_SIZE, **options),
}


def trained(part: str, path: Path, rank: int = 4, targets: str | None = None, **options):
    made = adapted(KINDS[part](path, **options), LoRA(rank=rank, alpha=8, targets=targets))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return made


def weights(part) -> dict[str, torch.Tensor]:
    return dict(MergedState(part))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("encoder", {}),
        ("encoder", {"dtype": "bfloat16", "quantization": "4bit"}),
        ("decoder", {"dtype": "bfloat16"}),
        ("decoder", {"quantization": "8bit"}),
    ],
)
def test_rounds_of_adapters_load_as_the_merged_weights_would(part, options, parts_folder, tmp_path):
    # red if `merge` keeps one round of two, adds the update in bfloat16, or if `round_weight` goes
    first = trained(part, parts_folder / part, **options)
    first.hand_on(tmp_path / "first")
    second = trained(part, tmp_path / "first", rank=2, **options)
    second.hand_on(tmp_path / "second")
    second.save(tmp_path / "merged")
    assert (tmp_path / "merged" / SUMS).stat().st_size > 0 and not (tmp_path / "merged" / BASE).exists()
    plain = {name: value for name, value in options.items() if name != "quantization"}
    state = torch.get_rng_state()
    again = KINDS[part](tmp_path / "second", **plain)
    assert torch.equal(torch.get_rng_state(), state) and not any(p.requires_grad for p in again.parameters())
    assert same(weights(again), weights(KINDS[part](tmp_path / "merged", **plain)))
    assert not same(weights(again), weights(KINDS[part](tmp_path / "first", **plain)))
    handed = sum(file.stat().st_size for file in (tmp_path / "second").rglob("*.safetensors"))
    assert handed < 0.2 * sum(file.stat().st_size for file in (tmp_path / "merged").rglob("*.safetensors"))


def test_adapters_of_convolutions_come_back_and_others_are_refused(parts_folder, tmp_path):
    # red if `complete` passes over convolutions, or targets that could not be merged are trained first
    made = trained("decoder", parts_folder / "decoder", targets=r"pos_embed\.proj|.*\.to_q")
    made.hand_on(tmp_path)
    want, start = MergedState(made.transformer), weights(KINDS["decoder"](parts_folder / "decoder").transformer)
    for name, weight in weights(KINDS["decoder"](tmp_path).transformer).items():
        torch.testing.assert_close(weight, want[name])
        assert torch.equal(weight, start[name]) != ("pos_embed.proj.weight" in name or "to_q.weight" in name)
    with pytest.raises(ValueError, match="embed_tokens is a Embedding; adapters are handed on for linear layers"):
        trained("encoder", parts_folder / "encoder", targets=r".*embed_tokens")


def test_half_an_adapter_is_refused(parts_folder, tmp_path):
    # red if a layer that has one matrix of two is passed over
    trained("encoder", parts_folder / "encoder").hand_on(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    lost = next(name for name in state if "lora_B" in name)
    save_file({name: tensor for name, tensor in state.items() if name != lost}, file)
    seal(tmp_path)
    with pytest.raises(ValueError, match=f"do not fit the model in its base .{lost.replace('lora_B', 'lora_A')}"):
        KINDS["encoder"](tmp_path)


def test_full_training_on_top_of_adapters_starts_from_both(parts_folder, tmp_path):
    # red if `_make_exact` forgets the adapters, or reads anew what was not rounded
    first = trained("decoder", parts_folder / "decoder")
    first.hand_on(tmp_path / "first")
    exact = adapted(KINDS["decoder"](tmp_path / "first", dtype="bfloat16"), "all")
    assert same(weights(exact.transformer), weights(KINDS["decoder"](tmp_path / "first").transformer))
    exact.hand_on(tmp_path / "whole")
    assert not (tmp_path / "whole" / BASE).exists()
    shutil.rmtree(tmp_path / "first")
    assert same(weights(KINDS["decoder"](tmp_path / "whole").transformer), weights(exact.transformer))


def test_a_base_that_moved_with_the_run_is_found_and_one_that_changed_is_refused(parts_folder, tmp_path):
    # red if `beside` goes, or `identity` is not compared
    base = tmp_path / "run" / "one" / "weights" / "encoder"
    shutil.copytree(parts_folder / "encoder", base)
    trained("encoder", base).hand_on(tmp_path / "run" / "two" / "weights" / "encoder")
    (tmp_path / "run").rename(tmp_path / "moved")
    adapter, base = (tmp_path / "moved" / name / "weights" / "encoder" for name in ("two", "one"))
    assert source_of(adapter, []).folder == base
    file = base / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    with pytest.raises(ValueError, match="has changed since .model.safetensors.: repeat the stage"):
        source_of(adapter, [])
    file.write_bytes(content)
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match=f"which is not there any more.*{adapter / BASE}"):
        source_of(adapter, [])


@pytest.mark.parametrize("damage", ["adapter", "base", "itself"])
def test_damaged_adapters_are_named(damage, parts_folder, tmp_path):
    # red if `verify` goes from `Adapter`, or a base.json without a key is passed on
    trained("encoder", parts_folder / "encoder").hand_on(tmp_path)
    content = json.loads((tmp_path / BASE).read_text())
    if damage == "adapter":
        file = tmp_path / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        changed = {"beside": "."} if damage == "itself" else {"base": 1, "beside": None}
        (tmp_path / BASE).write_text(json.dumps(content | changed | {"is": {}}))
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        KINDS["encoder"](tmp_path)


# ------------------------------------------------------------------------------------------------ one at a time


def test_shards_are_those_of_the_libraries(tmp_path):
    # red if a shard begins where the last one did, the header is not padded, or a scalar has no bytes
    torch.manual_seed(0)
    state = {f"layer.{i}": torch.randn(7, i + 1).to(dtype) for i, dtype in enumerate(tensor_files.KINDS)}
    state |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 2), "turned": torch.randn(3, 4).T}
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    sums = write_shards(tmp_path, "model", shapes, state.__getitem__, shard=300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(sums) == len(set(index.values())) > 2 and index.keys() == state.keys()
    for file in sums:
        found = load_file(file)
        assert all(torch.equal(found[name], state[name]) for name in found)
        assert sums[file] == tensor_files.hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(RuntimeError, match="not torch.float16"):
        write_shards(tmp_path, "x", {"a": torch.zeros(1, dtype=torch.float16, device="meta")}, lambda _: torch.zeros(1))


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    # red without `check_room` in `write_shards`
    monkeypatch.setattr(tensor_files.check_room.__globals__["shutil"], "disk_usage", lambda place: Usage())
    with pytest.raises(
        ValueError, match=r"no space is left for the weights in .*: 8.0 MB are needed.*1.0 MB.*--resume"
    ):
        write_shards(
            tmp_path, "model", {"a": torch.zeros(2_000_000, device="meta")}, lambda name: torch.zeros(2_000_000)
        )
    assert not list(tmp_path.iterdir())


class Usage:
    free = 1_000_000


def peak(run) -> int:
    """Bytes of tensors alive at most while it runs, beyond those that were there."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(torch.tensor(alive).cumsum(0).tolist(), default=0)


def test_saving_takes_the_memory_of_a_few_tensors(tmp_path):
    # red if `write_tensors` asks for all tensors before it writes the first, or MergedState keeps what it computed
    sizes = dict(num_layers=10, attention_head_dim=64, num_attention_heads=5, joint_attention_dim=64)
    more = dict(sample_size=8, caption_projection_dim=320, pooled_projection_dim=8, pos_embed_max_size=8)
    model = SD3Transformer2DModel(**sizes, **more)
    add_lora(model, LoRA(rank=4, alpha=8), ATTENTION_PROJECTIONS, torch.get_rng_state())
    size = sum(tensor.nbytes for tensor in MergedState(model).shapes().values())
    assert size > 30e6 and peak(lambda: {name: tensor.clone() for name, tensor in MergedState(model).items()}) > size
    assert peak(lambda: save_diffusers(model, MergedState(model), tmp_path)) < 0.1 * size
    assert same(load_file(tmp_path / "diffusion_pytorch_model.safetensors"), weights(model))


def test_positions_are_those_of_the_file(parts_folder, tmp_path, monkeypatch):
    # red without `table_of_the_file`
    made, compute = [], embeddings.get_2d_sincos_pos_embed
    monkeypatch.setattr(embeddings, "get_2d_sincos_pos_embed", lambda *a, **k: made.append(a) or compute(*a, **k))
    folder = tmp_path / "decoder"
    shutil.copytree(parts_folder / "decoder", folder)
    table = SD3Decoder(str(folder), IMAGE_SIZE).transformer.pos_embed.pos_embed
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    assert not made and table.abs().sum() > 0 and torch.equal(table, tensors.pop("pos_embed.pos_embed"))
    save_file(tensors, file)
    with pytest.raises(ValueError, match="lack 1 tensors"):
        SD3Decoder(str(folder), IMAGE_SIZE)


def test_loading_takes_no_whole_copy(tmp_path):
    # red if all layers are merged before the first one is quantized: weights lie in their file until then
    sizes = dict(num_layers=10, attention_head_dim=64, num_attention_heads=5, joint_attention_dim=64)
    more = dict(sample_size=8, caption_projection_dim=320, pooled_projection_dim=8, pos_embed_max_size=8)
    model = SD3Transformer2DModel(**sizes, **more)
    model.save_pretrained(tmp_path / "base")
    seal(tmp_path / "base")
    add_lora(model, LoRA(rank=4, alpha=8), ".*(attn|ff).*(to_.|proj|net.2)", torch.get_rng_state())
    save_file(get_peft_model_state_dict(model), tmp_path / "adapter.safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter.safetensors").rename(tmp_path / "adapter" / "adapter.safetensors")
    save_adapter(tmp_path / "adapter", model, source_of(tmp_path / "base", []), "4bit")
    size = sum(file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors"))

    source = source_of(tmp_path / "adapter", [])
    fresh = load(SD3Transformer2DModel, source.folder, torch.float32)
    assert size > 1e8 and peak(lambda: source.complete(fresh, fresh.transformer_blocks, "4bit")) < 0.4 * size
