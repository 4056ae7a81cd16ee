"""Training from a cache: who reads what, resuming, memory, and that a stage learns from it what it learns without."""

import json
import tracemalloc
from copy import deepcopy
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from PIL import Image
from staged import staged

from uae_lightning.data.cache_shards import Entry, Header, read_entry, write_shard
from uae_lightning.data.cached import CachedData, CacheIndex, as_batch
from uae_lightning.data.fingerprint import fingerprint
from uae_lightning.data.image_text import digest
from uae_lightning.interfaces import Reward
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene
from uae_lightning.stages.decoder_pretrain import DecoderPretrain, latents_of
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.types import Batch, Learn, LoRA, RewardInput, RewardOutput, Sampling
from uae_lightning.usage import UsageError

SAMPLES = 30
HEADER = Header({"resolution in pixels": "16", "precision": "32-true"}, "uae cache --config a.yaml --to b")


def entry(number: int, hidden: int = 6) -> Entry:
    """Latents and states full of the number; captions of 1 to 5 tokens."""
    latents, states = torch.full((2, 4, 4), float(number)), torch.full((1 + number % 5, hidden), float(number))
    content = digest(b"picture %d" % number) + digest(b"caption %d" % number)
    return Entry(content, f"{number:03d}.png", f"caption \u00e9 {number}", latents, states)


def write(folder: Path, samples: int, each: int, header: Header = HEADER) -> Path:
    for number, first in enumerate(range(0, samples, each)):
        entries = [entry(i) for i in range(first, min(first + each, samples))]
        write_shard(folder / f"cache-{number:06d}.safetensors", entries, header)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 samples in shards of 8."""
    return write(tmp_path_factory.mktemp("cache"), SAMPLES, 8)


def data_for(path: Path, *, rank: int = 0, world: int = 1, **options) -> CachedData:
    """On a rank, as the trainer sees it; `used` below is what the trainer has used up."""
    data = CachedData(str(path), **({"batch_size": 2, "validation_pictures": 4, "num_workers": 0} | options))
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, default_root_dir=f"{path}.out",
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )  # fmt: skip
    return data


def used(data: CachedData, batches: int) -> None:
    data.trainer.fit_loop.epoch_loop.batch_progress.total.processed = batches


def take(data: CachedData, batches: int) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), batches))


def numbers(batches: list[Batch]) -> list[int]:
    return [int(key[:3]) for batch in batches for key in batch.keys]


def held_out(data: CachedData) -> list[int]:
    return numbers(list(data.val_dataloader()))


# ---------------------------------------------------------------------------------------------------- samples


def test_a_sample_comes_back_as_it_was(cache: Path):
    # red if `ends` is read one row late, or texts are cut by characters instead of bytes
    for row in (0, 3, 7):
        found, expected = read_entry(cache / "cache-000001.safetensors", row), entry(8 + row)
        assert (found.content, found.key, found.caption) == (expected.content, expected.key, expected.caption)
        assert torch.equal(found.latents, expected.latents) and torch.equal(found.states, expected.states)


def test_a_batch_is_padded_and_masked():
    # red if < becomes <=, or padding is left out of the mask
    batch = as_batch([entry(1), entry(4), entry(5)])  # 2, 5 and 1 tokens
    states, mask = batch.embedded
    assert mask.tolist() == [[True] * n + [False] * (5 - n) for n in (2, 5, 1)]
    assert torch.equal(states[..., 0], mask * torch.tensor([[1.0], [4.0], [5.0]]))
    assert batch.latents[:, 0, 0, 0].tolist() == [1, 4, 5] and len(batch.images) == 3 and batch.weights is None


def test_ranks_and_workers_share_an_epoch(cache: Path):
    # red if bisect_right becomes bisect_left, or a shard's last sample is left out
    datas = [data_for(cache, rank=rank, world=2, num_workers=2, batch_size=1) for rank in range(2)]
    kept = held_out(datas[0]) + held_out(datas[1])
    assert len(set(kept)) == 4
    batches = [take(data, 20) for data in datas]
    first = []
    for data, read in zip(datas, batches, strict=True):
        deal = data._deal
        units = [deal.card(stream + turn * deal.streams)[0] for stream, (turn, *_) in data._reports]
        first += [number for number, unit in zip(numbers(read), units, strict=True) if unit < SAMPLES]
    assert sorted(first) == sorted(set(range(SAMPLES)) - set(kept))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_exactly(workers: int, cache: Path):
    # red if the seed or the place is left out
    wanted = take(data_for(cache, num_workers=workers), 40)  # three epochs
    stopped = data_for(cache, num_workers=workers)
    stream = iter(stopped.train_dataloader())
    for _ in range(17):
        next(stream)
    used(stopped, 15)  # two were read ahead
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = data_for(cache, num_workers=workers)
    resumed.load_state_dict(state)
    used(resumed, 15)
    assert [batch.keys for batch in take(resumed, 25)] == [batch.keys for batch in wanted[15:]]


def test_no_sample_of_a_held_out_picture_is_trained_on(cache: Path, tmp_path: Path):
    # red if content[:16] becomes content: the copy below has the picture and another caption
    first = min((entry(i) for i in range(SAMPLES)), key=lambda one: one.content)
    copy = Entry(first.content[:16] + digest(b"another caption"), "900.png", "x", first.latents, first.states)
    for shard in cache.iterdir():
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    write_shard(tmp_path / "cache-1of2-000000.safetensors", [copy], HEADER)
    data = data_for(tmp_path, validation_pictures=1)
    kept = held_out(data)
    assert len(kept) == 1 and kept[0] in (int(first.key[:3]), 900)
    trained = numbers(take(data, 45))
    assert not {int(first.key[:3]), 900} & set(trained) and len(set(trained)) == SAMPLES - 1
    assert data.skipped_files.held_out >= 2


def test_held_out_pictures_of_a_folder_need_no_captions_and_are_not_trained_on(cache: Path, tmp_path: Path):
    # red if the digests are those of decoded pictures, or captions are needed
    for index in range(3):
        Image.fromarray(render(sample_scene("train", 0, index))).save(tmp_path / f"{index}.png")
    data = tmp_path / "0.png"
    known = Entry(digest(data.read_bytes()) + digest(b"c"), "901.png", "c", torch.ones(2, 4, 4), torch.ones(1, 6))
    folder = write(tmp_path / "cache", 8, 8)
    write_shard(folder / "cache-000001.safetensors", [known], HEADER)
    module = data_for(folder, validation_path=str(tmp_path), validation_pictures=3)
    [batch] = list(module.val_dataloader())
    assert batch.images.shape == (3, 3, 16, 16) and batch.latents is None and batch.captions == [""] * 3
    assert 901 not in numbers(take(module, 12))


def test_memory_does_not_grow_with_the_samples(tmp_path: Path):
    # red if entries are kept, such as by a cache around `read_entry`, or read by `safe_open`
    peaks = []
    for count in (64, 64, 640):  # the first time modules are loaded
        folder = write(tmp_path / f"{len(peaks)}", count, count // 2)
        tracemalloc.start()
        index = CacheIndex(folder)
        assert sum(1 for unit in range(len(index)) for sample in index.read(unit) if sample.read().key) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]


# ---------------------------------------------------------------------------------------------------- refusals


def test_what_is_no_cache_is_named(tmp_path: Path, cache: Path):
    # red if an empty folder is taken for a cache, or shards of two caches for one
    with pytest.raises(FileNotFoundError, match="holds no cache.*uae cache --config"):
        CachedData(str(tmp_path)).source  # noqa: B018
    write(tmp_path / "mixed", 8, 8)
    other = Header(HEADER.made_by | {"precision": "bf16-mixed"}, HEADER.command)
    write_shard(tmp_path / "mixed" / "cache-000001.safetensors", [entry(9)], other)
    with pytest.raises(UsageError, match="two caches.*precision.*32-true.*bf16-mixed"):
        CachedData(str(tmp_path / "mixed")).source  # noqa: B018
    shard = tmp_path / "mixed" / "cache-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cache-000001.safetensors is damaged .* run `uae cache` again"):
        CachedData(str(tmp_path / "mixed")).source  # noqa: B018
    with pytest.raises(UsageError, match="leaves none to train on"):
        data_for(cache, validation_pictures=SAMPLES).train_dataloader()


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(encoder: bool = True, kind: type = DecoderPretrain, **options):
        lora = LoRA(rank=4, alpha=8)
        learn = Learn(projector="all", decoder=lora) if kind is DecoderPretrain else Learn(decoder=lora)
        optimizer = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)}
        parts = (make_encoder() if encoder else None, make_projector(), make_decoder())
        return staged(kind, *parts, sampling=Sampling(2), learn=learn, **optimizer, **options)

    return make


def cache_of(stage, batches: list[Batch], folder: Path, precision: str = "32-true") -> Path:
    """Made by the stage's own methods, in other batches than those it trains on."""
    header = Header(
        fingerprint(stage.autoencoder, precision) | {"resolution in pixels": str(IMAGE_SIZE)}, "uae cache --to x"
    )
    entries = []
    for batch in batches:
        latents, (states, mask) = latents_of(stage.autoencoder, batch), stage.autoencoder.embed(batch.captions)
        content = [digest(key.encode()) * 2 for key in batch.keys]
        rows = zip(content, batch.keys, batch.captions, latents, states, mask, strict=True)
        entries += [Entry(c, key, caption, x, s[m]) for c, key, caption, x, s, m in rows]
    write_shard(folder / "cache-000000.safetensors", entries, header)
    return folder


@pytest.fixture
def batches(images) -> list[Batch]:
    """Three batches of two pictures."""
    captions = ["a red cat at the middle", "two", "a small blue dog and a large green ball", "", "sun", "a key above a"]
    pictures = torch.cat([images, images.flip(3)[:2]])
    return [Batch(pictures[i : i + 2], captions[i : i + 2], [f"{n:03d}.png" for n in (i, i + 1)]) for i in (0, 2, 4)]


def changed(stage, what: str):
    if what == "VAE scaling":
        stage.decoder.codec.model.register_to_config(scaling_factor=1.5)
    elif what == "VAE weights":
        stage.decoder.codec.model.mean[0] += 1e-3
    elif what == "encoder weights":
        stage.encoder.model.model.language_model.norm.weight.data[0] += 1e-3
    elif what == "encoder dtype":
        stage.encoder.model.model.language_model.norm.half()
    elif what == "caption template":
        stage.encoder.generate_system = "Draw."
    elif what == "resolution":
        stage.decoder.image_size = 32
    return stage


@pytest.mark.parametrize(
    "what",
    ["VAE scaling", "VAE weights", "encoder weights", "encoder dtype", "caption template", "resolution", "precision"],
)
def test_a_stale_cache_is_refused_and_what_differs_is_named(what: str, make_stage, batches, tmp_path: Path):
    # red without the line of `fingerprint` that is named
    stage = make_stage()
    data = CachedData(str(cache_of(stage, batches, tmp_path)), validation_pictures=1)
    data.check(make_stage(), "32-true")
    with pytest.raises(UsageError, match=f"differs in .*{what}.*in the cache.*uae cache .* --overwrite"):
        data.check(changed(stage, what), "bf16-mixed" if what == "precision" else "32-true")


def test_what_has_no_part_in_it_does_not_make_a_cache_stale(make_stage, batches, tmp_path: Path):
    # red if the transformer's weights, the projector's or `max_pixels` are in the fingerprint
    stage = make_stage()
    data = CachedData(str(cache_of(stage, batches, tmp_path)), validation_pictures=1)
    next(stage.decoder.transformer.parameters()).data += 1
    next(stage.projector.parameters()).data += 1
    stage.encoder.max_pixels = 1
    data.check(stage, "32-true")


def test_stages_that_cannot_train_from_it_are_refused(make_stage, batches, tmp_path: Path):
    # red if the check of the class, of the encoder, of the padding or of the width is left out
    stage = make_stage()
    path = str(cache_of(stage, batches, tmp_path))
    rl = make_stage(kind=DecoderRL, group_size=2, micro_batch=2, window=(0, 1), clip=0.1)
    with pytest.raises(UsageError, match="DecoderRL needs pictures"):
        CachedData(path).check(rl, "32-true")
    with pytest.raises(UsageError, match="validation_path.*needs the encoder"):
        CachedData(path, validation_path="held_out").check(make_stage(encoder=False), "32-true")
    with pytest.raises(ValueError, match="negative_prompt.*null"):
        make_stage(encoder=False, negative_prompt="ugly")
    with pytest.raises(ValueError, match="no encoder to read or write captions"):
        make_stage(encoder=False).training_step(batches[0], 0)
    stage.decoder.mask_padding = False
    with pytest.raises(UsageError, match="mask_padding"):
        CachedData(path).check(stage, "32-true")
    narrow = make_stage(encoder=False)
    narrow.projector.input_size = 3
    with pytest.raises(UsageError, match="192 channels, the projector takes 3"):
        CachedData(path).check(narrow, "32-true")


# ---------------------------------------------------------------------------------------------------- training


def trained(stage, batches: list[Batch]) -> list[float]:
    """Losses of a few steps."""
    optimizer, losses = stage.configure_optimizers(), []
    for number, batch in enumerate(batches):
        stage.on_train_batch_start(batch, number)
        loss = stage.training_step(batch, number)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_training_from_the_cache_is_training_without_it(make_stage, batches, tmp_path: Path):
    # red if `drop` or the mask is left out of the cached path, or latents are scaled again; rounding is another where
    # captions were read in other batches, so losses agree to 1e-5 and not to the bit; AdamW makes more of it where
    # gradients are near 0: weights agree to a tenth of a step
    torch.manual_seed(0)
    stage = make_stage(condition_dropout=0.4)
    folder = cache_of(stage, batches, tmp_path)
    index = CacheIndex(folder)
    order = [(0, 3), (5, 1), (4, 2), (2, 0)]  # mixed: other neighbours, other padding
    pictures, captions = torch.cat([batch.images for batch in batches]), sum((b.captions for b in batches), [])
    plain = [Batch(pictures[list(rows)], [captions[i] for i in rows], ["", ""]) for rows in order]
    cached = [as_batch([index.sample(i).read() for i in rows]) for rows in order]
    other = deepcopy(stage)
    other.autoencoder.encoder = other.decoder.codec = None  # touched by neither
    losses, from_cache = trained(stage, plain), trained(other, cached)
    assert losses == pytest.approx(from_cache, rel=1e-5) and len(set(losses)) == 4
    mine, theirs = dict(stage.named_parameters()), dict(other.named_parameters())
    moved = [name for name, parameter in theirs.items() if parameter.requires_grad]
    assert moved and all(torch.allclose(mine[name], theirs[name], atol=1e-4) for name in moved)


class Closeness(Reward):
    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = 1 - (inputs.originals - inputs.reconstructions).abs().mean((1, 2, 3))
        return RewardOutput(total, {"closeness": total})


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_lightning_trains_and_validates_without_an_encoder(make_stage, batches, tmp_path: Path):
    # red if a cached batch is sent on the round trip, or Lightning cannot move it
    from callbacks import RewardCallback

    folder = cache_of(make_stage(), batches, tmp_path / "cache")
    data = CachedData(str(folder), batch_size=2, validation_pictures=2, num_workers=0)
    trainer = L.Trainer(
        max_steps=3, max_epochs=-1, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=-1,
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[RewardCallback(Closeness())],
    )  # fmt: skip
    trainer.fit(make_stage(encoder=False), datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 3] and rows[0]["keys"] == rows[1]["keys"] and len(rows[0]["keys"]) == 2
    assert rows[0]["reward"] != rows[1]["reward"]
