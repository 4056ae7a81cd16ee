"""Hub ids, models without weights, activation checkpointing, compilation, attention backends."""

import shutil

import pytest
import torch
from conftest import LATENT_SHAPE, adapted
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from torch._dynamo.utils import counters
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.paths import resolve
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Captions, Conditioning, LoRA


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into(cache, name, folder):
    """`folder` as huggingface_hub keeps a download of `name`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")


def test_a_hub_id_is_read_from_the_cache(hub_cache, parts_folder, make_encoder):
    # red if `_from_hub` is asked before the local folder is looked for, or for other files than FILES
    put_into(hub_cache, "some-owner/Some.Model-3B", parts_folder / "encoder")
    encoder = QwenVLEncoder("some-owner/Some.Model-3B")
    assert torch.equal(encoder.model.lm_head.weight, make_encoder().model.lm_head.weight)


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(hub_cache, tmp_path, monkeypatch):
    # red if `not found.exists()` goes
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert resolve("runs/demo").samefile(tmp_path / "runs" / "demo")


def test_a_model_that_cannot_be_had_says_what_to_do(hub_cache, monkeypatch):
    # red if LocalEntryNotFoundError or GatedRepoError is not caught
    with pytest.raises(FileNotFoundError, match="hf download some-owner/nothing"):
        resolve("some-owner/nothing")

    def gated(*args, **kwargs):
        raise GatedRepoError("403", response=Response())

    monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
    with pytest.raises(FileNotFoundError, match="accept its licence at https://huggingface.co/some-owner/gated"):
        resolve("some-owner/gated")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resolve("a/b/c")


class Response:
    headers: dict = {}
    request = None
    status_code = 403
    url = ""


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory):
    """A small SD3.5 as a pipeline of diffusers is saved: AutoencoderKL, dual attention, CLIP text encoders."""
    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=20,
        pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=1.5, shift_factor=0.06,
        use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for number, size in (("", 8), ("_2", 12)):
        config = CLIPTextConfig(
            vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=size, eos_token_id=59, bos_token_id=58, max_position_embeddings=16,
        )  # fmt: skip
        CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{number}")
        write_clip_tokenizer(folder / f"tokenizer{number}")
    return folder


def write_clip_tokenizer(folder):
    letters = [chr(code) for code in range(97, 97 + 26)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "!", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = dict.fromkeys(tokens) | {token: index for index, token in enumerate(tokens)}
    vocabulary |= {"<|startoftext|>": 58, "<|endoftext|>": 59}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16).save_pretrained(folder)


def test_pooled_embedding_is_computed_once_from_the_text_encoders(diffusers_folder, tmp_path):
    # red if the two are joined in the other order, or the file is not written
    folder = tmp_path / "sd3"
    shutil.copytree(diffusers_folder, folder)
    decoder = SD3Decoder(str(folder), resolution=16)
    wanted = []
    for number in ("", "_2"):
        words = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
        model = CLIPTextModelWithProjection.from_pretrained(folder / f"text_encoder{number}").eval()
        inputs = words([""], padding="max_length", max_length=16, return_tensors="pt")
        assert inputs["input_ids"][0, :2].tolist() == [58, 59]
        with torch.no_grad():
            wanted.append(model(inputs["input_ids"]).text_embeds)
    torch.testing.assert_close(decoder.pooled, torch.cat(wanted, 1))
    for part in ("text_encoder", "text_encoder_2", "tokenizer"):  # from now on they are not needed
        shutil.rmtree(folder / part)
    assert torch.equal(SD3Decoder(str(folder), resolution=16).pooled, decoder.pooled)


def test_pictures_go_through_the_vae_as_in_the_pipeline(diffusers_folder):
    # red if scaling and shift are swapped, or the downsampling is off
    decoder = SD3Decoder(str(diffusers_folder), resolution=16)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = decoder.encode_images(images)
        assert latents.shape[1:] == decoder.latent_shape == (4, 8, 8)
        wanted = (decoder.codec.model.encode(2 * images - 1).latent_dist.mode() - 0.06) * 1.5
        torch.testing.assert_close(latents, wanted)
        assert decoder.decode_latents(latents).shape == images.shape


def test_weightless_models_have_the_shapes_and_nothing_else(diffusers_folder, parts_folder):
    # red if `weightless()` is False, or a buffer is read from its file
    def shapes(module):
        return {name: (p.shape, p.dtype) for name, p in [*module.named_parameters(), *module.named_buffers()]}

    def made():
        decoder = SD3Decoder(str(diffusers_folder), resolution=16, dtype="bfloat16")
        return [adapted(part, LoRA(rank=4)) for part in (decoder, QwenVLEncoder(str(parts_folder / "encoder")))]

    full = made()
    with torch.device("meta"):
        light = made()
    for a, b in zip(full, light, strict=True):
        assert shapes(a) == shapes(b)
        assert {tensor.device.type for tensor in [*b.parameters(), *b.buffers()]} == {"meta"}
    with torch.device("meta"), torch.no_grad():
        x, sigma = torch.zeros(2, *light[0].latent_shape), torch.ones(2)
        cond = Conditioning(torch.zeros(2, 5, 24), torch.ones(2, 5, dtype=torch.bool))
        assert light[0].velocity(x, sigma, cond).shape == x.shape


def saved_bytes(forward) -> int:
    """Bytes that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward().square().mean().backward()
    return sum(kept.values())


def test_activation_checkpointing_keeps_less_and_changes_nothing(make_decoder, make_encoder, images):
    # red if `checkpoint` is replaced by a plain call
    conditioning = Conditioning(torch.ones(4, 6, 24), torch.ones(4, 6, dtype=torch.bool))
    x, sigma = torch.ones(4, *LATENT_SHAPE), torch.full((4,), 0.5)
    tokens = torch.randint(10, 90, (4, 8), generator=torch.Generator().manual_seed(0))
    captions = Captions([""] * 4, tokens, torch.ones_like(tokens, dtype=torch.bool))
    for make, forward in [
        (make_decoder, lambda part: part.velocity(x, sigma, conditioning)),
        (make_encoder, lambda part: part.token_logits(images, captions)),
    ]:
        kept, gradients = [], []
        for switch in (False, True):
            torch.manual_seed(0)
            part = make(LoRA(rank=4), checkpoint_activations=switch)
            kept.append(saved_bytes(lambda part=part, forward=forward: forward(part)))
            gradients.append([p.grad for p in part.parameters() if p.requires_grad])
        assert kept[1] < 0.7 * kept[0]
        for plain, checkpointed in zip(*gradients, strict=True):
            assert torch.equal(plain, checkpointed)


def test_generation_keeps_its_cache_under_activation_checkpointing(make_encoder, images):
    # red if `is_grad_enabled` becomes True: the cache would be lost, or written to twice
    options = {"samples": 2, "temperature": 1.0, "max_new_tokens": 8, "seed": 0}
    plain, light = make_encoder(), make_encoder(checkpoint_activations=True)
    assert torch.equal(plain.generate(images, **options).tokens, light.generate(images, **options).tokens)


def test_compiled_sampling_equals_compiled_replay(make_decoder, monkeypatch):
    # red if blocks are compiled in one of the two only; the compiler's own C++ would take minutes here
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend="aot_eager"))
    decoder = make_decoder(LoRA(rank=4), compile=True)
    conditioning = Conditioning(torch.ones(2, 6, 24), torch.ones(2, 6, dtype=torch.bool))
    x, sigma = torch.randn(2, *LATENT_SHAPE), torch.full((2,), 0.5)
    with torch.no_grad():
        sampled = decoder.velocity(x, sigma, conditioning)
    replayed = decoder.velocity(x, sigma, conditioning)
    assert replayed.requires_grad and torch.equal(sampled, replayed)
    assert all(block._compiled_call_impl is not None for block in decoder.blocks())
    torch.testing.assert_close(sampled, make_decoder().velocity(x, sigma, conditioning), atol=1e-5, rtol=1e-4)


def test_compiled_blocks_with_adapters_share_their_graphs(monkeypatch):
    # red with `one_product=True` in SD3Decoder.adapt: each of the 6 blocks gets a graph of its own
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    decoder = adapted(SD3Decoder("shipped:scenes/decoder", resolution=IMAGE_SIZE, compile=True), LoRA())
    conditioning = Conditioning(torch.ones(2, 6, decoder.conditioning_size), torch.ones(2, 6, dtype=torch.bool))
    decoder.velocity(torch.randn(2, *decoder.latent_shape), torch.full((2,), 0.5), conditioning)
    assert len(decoder.blocks()) == 6 and 0 < counters["stats"]["unique_graphs"] <= 3  # the first and last differ


def test_other_attention_backends_go_through_diffusers(make_decoder):
    # red if a transpose before the dispatch goes
    conditioning = Conditioning(torch.ones(2, 6, 24), torch.arange(6).expand(2, 6) < torch.tensor([[6], [4]]))
    x, sigma = torch.ones(2, *LATENT_SHAPE), torch.full((2,), 0.5)
    decoder = make_decoder(attention="_native_math")
    assert decoder.transformer.transformer_blocks[0].attn.processor._attention_backend is not None
    with torch.no_grad():
        wanted = make_decoder().velocity(x, sigma, conditioning)
        torch.testing.assert_close(decoder.velocity(x, sigma, conditioning), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend, reason", [("flash", "takes no mask.*mask_padding"), ("nonsense", "one of"),
                                             ("flash_varlen", "install `flash-attn")])  # fmt: skip
def test_attention_that_cannot_be_had_is_refused(make_decoder, backend, reason):
    # red if use_masked_attention does not translate the error of diffusers
    with pytest.raises(ValueError, match=f"attention: {backend} .*{reason}"):
        make_decoder(attention=backend)


def test_flash_attention_of_the_encoder_names_the_extra(make_encoder):
    # red if `is_flash_attn_2_available` is not asked
    with pytest.raises(ValueError, match=r"attention: flash_attention_2.*uae-lightning\[flash\]"):
        make_encoder(attention="flash_attention_2")


def test_attending_to_padding_restores_the_release(make_decoder):
    # red if `mask_padding` is ignored
    states = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(0))
    x, sigma = torch.ones(2, *LATENT_SHAPE), torch.full((2,), 0.5)
    short, full = torch.arange(6).expand(2, 6) < 4, torch.ones(2, 6, dtype=torch.bool)
    decoder = make_decoder(mask_padding=False)
    with torch.no_grad():
        assert torch.equal(
            decoder.velocity(x, sigma, Conditioning(states, short)),
            decoder.velocity(x, sigma, Conditioning(states, full)),
        )
        assert not torch.allclose(
            make_decoder().velocity(x, sigma, Conditioning(states, short)),
            make_decoder().velocity(x, sigma, Conditioning(states, full)),
            atol=1e-4,
        )
