"""What the parts for several devices do in one process."""

from __future__ import annotations

import json
import os
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from uae_lightning.files import recover, replacing_folder
from uae_lightning.parallel import checkpoint_io, collectives, ending, launch
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.parallel.checksums import checksum
from uae_lightning.parallel.ending import EndTogether
from uae_lightning.parallel.launch import LEFT_BY_LIGHTNING, Followers, is_main, own_ranks
from uae_lightning.parallel.sharded_checkpoint import REST, load_shards, save_shards
from uae_lightning.parallel.sharding import shard, units, whole, whole_on_main
from uae_lightning.parallel.strategy import ShardedStrategy
from uae_lightning.run.stage_cli import StageCLI, parse_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.usage import UsageError


@pytest.fixture
def mesh():
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.adapter = nn.Linear(2, 2, dtype=torch.bfloat16).requires_grad_(False), nn.Linear(2, 2)

    def forward(self, x):
        return self.base(x.bfloat16()).float() + self.adapter(x)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(2, 2).requires_grad_(False)
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Part(nn.Module):
    """Called in two ways, neither of which goes through its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = Tower(), nn.Linear(2, 2).requires_grad_(False)

    def blocks(self):
        return list(self.tower.layers)

    def read(self, x):
        return self.tower(x)

    def look(self, x):
        return self.head(self.tower(self.tower.embedding(x)))


def test_every_way_into_a_part_finds_its_weights(mesh):
    # red with fully_shard(part) in place of its holders
    torch.manual_seed(0)
    part, x = Part(), torch.ones(3, 2)
    expected = part.look(x), part.read(x)
    shard(part, mesh)
    shard(part, mesh)  # as Lightning does where a stage is validated and then trained
    assert len(units(part)) == 3
    assert torch.equal(part.look(x), expected[0]) and torch.equal(part.read(x), expected[1])
    sharded = {name for name, parameter in part.named_parameters() if isinstance(parameter, DTensor)}
    assert all(name.startswith("tower.layers") for name in sharded) and len(sharded) == 8


def test_whole_keeps_the_weights_through_forwards_and_releases_them(mesh):
    # red without set_reshard_after_forward(False, ...) or without unit.reshard()
    part = Part()
    shard(part, mesh)
    weight = lambda: part.tower.layers[0].base.weight  # noqa: E731
    with whole(part), torch.no_grad():
        part.read(torch.ones(1, 2))
        assert not isinstance(weight(), DTensor)
    assert isinstance(weight(), DTensor)


def test_whole_on_main_gives_plain_tensors_and_takes_them_back(mesh):
    # red without the `finally`, or with the DTensor itself as the parameter
    part = Part()
    shard(part, mesh)
    before = dict(part.named_parameters())
    with whole_on_main(part):
        assert not any(isinstance(tensor, DTensor) for tensor in part.state_dict().values())
    assert all(parameter is before[name] for name, parameter in part.named_parameters())


def test_what_is_trained_outside_the_blocks_cannot_be_sharded(mesh):
    # red without the check at the end of `shard`
    part = Part()
    part.head.requires_grad_(True)
    with pytest.raises(ValueError, match="head.weight is trained .* ddp"):
        shard(part, mesh)


def test_a_sharded_tensor_comes_back_where_it_was(mesh, tmp_path):
    # red with str(path) for json.dumps(path), or with the sharded tensors left in the rest
    part = Part()
    shard(part, mesh)
    state = dict(part.named_parameters())
    checkpoint = {"state_dict": state, "optimizer_states": [{"state": {0: {"step": torch.ones(())}}}], "epoch": 3}
    save_shards(checkpoint, tmp_path, 0, 1)
    loaded = load_shards(tmp_path, part)
    assert loaded["epoch"] == 3 and loaded["optimizer_states"] == [{"state": {0: {"step": torch.ones(())}}}]
    for name, tensor in loaded["state_dict"].items():
        assert isinstance(tensor, DTensor) == isinstance(state[name], DTensor)
        assert torch.equal(local(tensor), local(state[name]))
    plain = load_shards(tmp_path)["state_dict"]
    assert not any(isinstance(tensor, DTensor) for tensor in plain.values())


def local(tensor):
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def two_shards(folder):
    torch.save({"state_dict": {"a": None, "b": torch.ones(1)}}, folder / REST)
    for rank, rows in enumerate(([[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0]])):
        place, tensor = json.dumps(["state_dict", "a"]), torch.tensor(rows)
        file = folder / f"shard-0000{rank}-of-00002.safetensors"
        save_file({place: tensor}, file, metadata={place: checksum(tensor)})


def test_shards_of_two_ranks_are_one_tensor_without_ranks(tmp_path):
    # red with `files[:1]` in rows
    two_shards(tmp_path)
    state = AtomicCheckpointIO().load_checkpoint(tmp_path)["state_dict"]
    assert torch.equal(state["a"], torch.arange(6.0).view(3, 2)) and torch.equal(state["b"], torch.ones(1))


@pytest.mark.parametrize("damage", ["shard-00001-of-00002.safetensors", REST])
def test_a_folder_without_all_its_files_is_refused(tmp_path, damage):
    # red without the count of shards, or without OSError in the except clause
    two_shards(tmp_path)
    (tmp_path / damage).unlink()
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors", REST])
def test_a_flipped_byte_in_a_shard_is_found(tmp_path, file):
    # red without check_shards or check_zip, or with `if sums.keys()` left out
    two_shards(tmp_path)
    whole, taken = (tmp_path / file).read_bytes(), 0
    for place in range(0, len(whole), 37 if file == REST else 1):
        (tmp_path / file).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            state = AtomicCheckpointIO().load_checkpoint(tmp_path)["state_dict"]
        except ValueError as error:
            assert "cannot read the checkpoint" in str(error)
        else:
            assert torch.equal(state["a"], torch.arange(6.0).view(3, 2)) and torch.equal(state["b"], torch.ones(1))
            taken += file != REST
    assert taken < 9  # blanks between the header and the tensors


def test_a_kill_between_the_two_renames_loses_no_checkpoint(tmp_path, monkeypatch):
    # red without `recover`, or with remove(previous) after the first rename
    path = tmp_path / "last.ckpt"

    def save(content):
        with replacing_folder(path, main=True, barrier=lambda: None) as folder:
            (folder / "file").write_text(content)

    save("1")
    save("2")
    assert (path / "file").read_text() == "2" and os.listdir(tmp_path) == ["last.ckpt"]
    rename, calls = checkpoint_io.Path.rename, []

    def killed_at_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(checkpoint_io.Path, "rename", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        save("3")
    monkeypatch.undo()
    recover(path)
    assert (path / "file").read_text() == "2"


def test_a_checkpoint_of_one_form_replaces_one_of_the_other(tmp_path):
    # red with os.replace for every path in `replacing`
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    with replacing_folder(path, main=True, barrier=lambda: None) as folder:
        two_shards(folder)
    io.save_checkpoint({"step": 1}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    with replacing_folder(path, main=True, barrier=lambda: None) as folder:
        two_shards(folder)
    assert path.is_dir() and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize(("pictures", "size", "each"), [(4, 2, [2, 2]), (5, 2, [1, 1, 1, 2]), (7, 4, [3, 4])])
def test_held_out_pictures_are_dealt_to_ranks_in_equal_numbers_of_batches(pictures, size, each):
    # red with `1` for `world` in the number of batches
    def batches(rank, world):
        data = ScenesData(validation_pictures=pictures, validation_batch_size=size)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return [batch.keys for batch in data.val_dataloader()]

    ranks = [batches(0, 2), batches(1, 2)]
    assert len(ranks[0]) == len(ranks[1])
    dealt = [keys for pair in zip(*ranks, strict=True) for keys in pair]
    assert [len(keys) for keys in dealt] == each
    assert sum(dealt, []) == [key for keys in batches(0, 1) for key in keys]


def test_more_ranks_than_held_out_pictures_are_refused():
    # red without the check in batch_edges
    data = ScenesData(validation_pictures=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(ValueError, match="validation_pictures .1. must be at least"):
        data.val_dataloader()


def test_a_stage_leaves_no_trace_of_its_ranks(monkeypatch):
    # red without the `finally` in own_ranks; with it a stage started by others keeps its place
    for name in LEFT_BY_LIGHTNING:
        monkeypatch.delenv(name, raising=False)
    with own_ranks():
        os.environ |= {"LOCAL_RANK": "0", "MASTER_PORT": "1"}
    assert not {"LOCAL_RANK", "MASTER_PORT"} & os.environ.keys()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with own_ranks():
        os.environ["MASTER_PORT"] = "1"
    assert not is_main() and os.environ.pop("MASTER_PORT") == "1"


def test_rank_0_alone_asks_whether_there_is_an_earlier_stage(tmp_path, monkeypatch):
    # red without `if is_main()`: rank 0 may have begun to write before another rank has looked
    (tmp_path / "config.yaml").write_text("model: {}\n")
    cli = parse_stage(["fit", "--config=conf/scenes/decoder_rl.yaml", f"--trainer.default_root_dir={tmp_path}"])
    flags = cli.config.fit.clone()
    monkeypatch.setenv("RANK", "1")
    StageCLI.before_instantiate_classes(cli)
    assert cli.resume_from is None
    monkeypatch.setenv("RANK", "0")
    cli.config.fit = flags
    with pytest.raises(UsageError, match="holds an earlier stage"):
        StageCLI.before_instantiate_classes(cli)


def test_rank_0_tells_the_others_which_stages_to_run(monkeypatch):
    # red without `self.number += 1`
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29777")
    monkeypatch.setenv("RANK", "0")
    main = Followers()
    monkeypatch.setenv("RANK", "1")
    other = Followers()
    for command in (["fit", "--config=a"], ["fit", "--config=b"], None):
        main.tell(command)
        assert other.hear() == command
    monkeypatch.delenv("MASTER_ADDR")
    assert Followers().store is None


def test_rank_0_stays_until_the_others_know_that_the_run_is_over(monkeypatch):
    # red without `_stay`: a rank that comes late finds no store, and fails after a run without a failure
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29787"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    main = Followers()
    leaving = threading.Thread(target=main.tell, args=[None])
    leaving.start()
    leaving.join(0.2)
    assert leaving.is_alive()
    monkeypatch.setenv("RANK", "1")
    assert Followers().hear() is None
    leaving.join(launch.FAREWELL_SECONDS / 2)
    assert not leaving.is_alive()
    monkeypatch.setattr(launch, "FAREWELL_SECONDS", 0.1)
    main.others = 9  # one of them is dead: nobody waits for ever
    main._stay()


def test_fsdp_by_name_is_fsdp2(tmp_path, monkeypatch):
    # red without the line that replaces "fsdp" in instantiate_trainer
    trainer = SimpleNamespace(callbacks=[])
    seen = {}
    monkeypatch.setattr(
        "lightning.pytorch.cli.LightningCLI.instantiate_trainer", lambda self, **k: seen.update(k) or trainer
    )
    cli = object.__new__(StageCLI)
    cli.clock = None
    options = SimpleNamespace(logger=False, plugins=None, strategy="fsdp")
    cli.config_init, cli.subcommand = {"fit": SimpleNamespace(trainer=options)}, "fit"
    cli.instantiate_trainer()
    assert isinstance(seen["strategy"], ShardedStrategy)


def test_the_first_reason_is_everybodys(monkeypatch):
    # red with `reason` for `told` in the call of end, or without compare_set's answer
    said = []
    monkeypatch.setattr(ending, "end", said.append)
    monkeypatch.setattr(ending, "GRACE_SECONDS", 0)
    store = dist.HashStore()
    for rank, error in ((1, FloatingPointError("the reward is NaN")), (0, RuntimeError("connection closed"))):
        callback = EndTogether()
        callback.store = store
        callback.on_exception(SimpleNamespace(global_rank=rank, is_global_zero=rank == 0), None, error)
    assert said == ["rank 1 failed: the reward is NaN"]


def test_a_rank_without_data_says_so():
    # red with `batches < 0`
    callback, trainer = EndTogether(), SimpleNamespace(global_rank=1, world_size=2, num_training_batches=0)
    callback.on_fit_end(trainer, None)  # one process: Lightning's own warning is enough
    callback.store = dist.HashStore()
    with pytest.raises(ValueError, match="no training data for rank 1 of 2"):
        callback.on_fit_end(trainer, None)


def test_metrics_of_ranks_are_averaged_but_for_maxima(monkeypatch):
    # red with MAXIMA empty
    monkeypatch.setattr(collectives, "ranks", lambda: 2)
    monkeypatch.setattr(collectives, "gathered", lambda own: torch.cat([own, own + 2]))
    metrics = {"caption_tokens": 1.0, "ratio_max": 1.0, "first_log_ratio": 0.0}
    expected = {"caption_tokens": 2.0, "ratio_max": 3.0, "first_log_ratio": 2.0}
    assert collectives.reduce_metrics(metrics, torch.device("cpu")) == expected
