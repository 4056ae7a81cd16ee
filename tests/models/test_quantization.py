"""8-bit and 4-bit bases under LoRA, on the small models of the real classes (bitsandbytes computes on the CPU too)."""

import copy
import logging
import sys
import weakref
from importlib.util import module_from_spec
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from conftest import LATENT_SHAPE

from uae_lightning.models.adapters import MergedState
from uae_lightning.models.quantization import FrozenLinear4bit, dequantized, is_quantized, quantize_linears
from uae_lightning.prepare.captioner import Captioner
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Conditioning, LoRA

LORA = LoRA(rank=4, alpha=8)
ERROR = {"8bit": 0.03, "4bit": 0.35}  # relative, of random weights; trained ones: .016 and .10 of the velocity


def conditioning(n: int) -> Conditioning:
    states = torch.randn(n, 5, 24, generator=torch.Generator().manual_seed(1))
    return Conditioning(states, torch.ones(n, 5, dtype=torch.bool))


def noise(n: int) -> torch.Tensor:
    return torch.randn(n, *LATENT_SHAPE, generator=torch.Generator().manual_seed(2))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for name, p in module.named_parameters() if "lora_" not in name)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_decoder_with_lora_trains_and_replays_exactly(make_decoder, quantization):
    # red if `linear.weight.data` loses its sign
    plain = make_decoder()
    decoder = make_decoder(LORA, quantization=quantization)
    sigma = torch.full((2,), 0.7)
    velocity = decoder.velocity(noise(2), sigma, conditioning(2))
    with torch.no_grad():
        assert torch.equal(decoder.velocity(noise(2), sigma, conditioning(2)), velocity)
        wanted = plain.velocity(noise(2), sigma, conditioning(2))
    assert 0 < relative(velocity, wanted) < ERROR[quantization]
    velocity.square().sum().backward()
    trained = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert sum(p.grad.abs().sum() for name, p in trained.items() if "lora_B" in name) > 0


@pytest.mark.parametrize("quantization, bytes_per_weight", [("8bit", 1), ("4bit", 0.5)])
def test_all_linears_of_the_blocks_and_only_those_are_quantized(make_encoder, quantization, bytes_per_weight):
    # red if `blocks` is replaced by `[model]` (the head would be quantised too), children of children are left out, or
    # `.eval()` goes (8-bit layers compute differently in train mode)
    encoder = make_encoder(quantization=quantization)
    linears = {name for name, module in make_encoder().model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linears if ".layers." in name or ".blocks." in name}
    quantized = {name: module for name, module in encoder.model.named_modules() if is_quantized(module)}
    assert quantized.keys() == inside and "lm_head" in linears - inside
    for module in quantized.values():
        assert not module.training
        weight = module.weight
        assert weight.numel() * weight.element_size() == module.in_features * module.out_features * bytes_per_weight
    assert weight_bytes(encoder) < weight_bytes(make_encoder())


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_what_was_trained_is_what_is_saved(make_decoder, tmp_path, quantization):
    # red if `MergedState` keeps the packed weight or leaves the update out, or `dequantized` changes the layer
    decoder = make_decoder(LORA, quantization=quantization)
    for name, parameter in decoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    sigma = torch.full((2,), 0.5)
    with torch.no_grad():
        before = decoder.velocity(noise(2), sigma, conditioning(2))
    decoder.save(tmp_path)
    again = type(decoder)(str(tmp_path), resolution=IMAGE_SIZE, sigma_spacing="even")
    with torch.no_grad():
        assert torch.equal(decoder.velocity(noise(2), sigma, conditioning(2)), before)
        trained, loaded = (d.velocity(noise(2), sigma, conditioning(2)) for d in (decoder, again))
        start = make_decoder().velocity(noise(2), sigma, conditioning(2))
    # an int8 layer rounds its input as well, which the saved one does not
    assert relative(loaded, trained) < 0.03 < relative(start, trained)
    assert MergedState(decoder.transformer).keys() == make_decoder().transformer.state_dict().keys()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_reference_of_a_quantized_policy_is_its_start(make_encoder, quantization):
    # red if `enable_adapters(False)` goes
    encoder = make_encoder(LORA, quantization=quantization)
    start = encoder.embed(["red cat"])[0]
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(encoder.embed(["red cat"])[0], start, atol=1e-3)
    with encoder.reference(), torch.no_grad():
        assert torch.equal(encoder.embed(["red cat"])[0], start)


def test_full_training_of_quantized_weights_is_refused(make_decoder):
    # red if the check goes
    with pytest.raises(ValueError, match="quantization: 8bit.*learn.decoder"):
        make_decoder("all", quantization="8bit")


def test_8bit_layer_is_that_of_bitsandbytes_but_keeps_no_input():
    # red if `x` is saved for the backward pass, the scales are left out of it, or rows are not scaled each by itself
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    plain = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=0.0)
    plain.weight = bnb.nn.Int8Params(linear.weight.data.clone(), has_fp16_weights=False, requires_grad=False)
    plain.bias = linear.bias
    plain = plain.to("cpu").eval()
    holder = torch.nn.Sequential(linear).requires_grad_(False)
    quantize_linears(holder, [holder], "8bit")
    results = []
    for layer in (plain, holder[0]):
        x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        inside = x * 1
        alive, output = weakref.ref(inside), layer(inside)
        del inside
        results.append((output, alive() is not None))
        output.square().sum().backward()
        results[-1] += (x.grad,)
    (wanted, _, wanted_grad), (got, kept, grad) = results
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad, wanted_grad, atol=1e-3, rtol=1e-3)
    assert not kept


@pytest.fixture
def packing(monkeypatch):
    """bitsandbytes takes this CPU for one with AVX512-BF16."""
    for module in (bnb.nn.modules, bnb.functional):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: True)


@pytest.mark.parametrize("width", [30, 48, 64, 160, 192])
def test_4bit_layer_computes_the_same_in_every_mode(width, packing):
    # red with bitsandbytes' own layer: of a width that is no multiple of 64 a CPU has other weights than were quantized
    torch.manual_seed(0)
    linear = torch.nn.Linear(width, 100)
    linear.weight.data = torch.randn(100, width) * torch.logspace(-1, 0, 100).unsqueeze(1)  # else all blocks are alike
    holder = torch.nn.Sequential(linear).requires_grad_(False)
    quantize_linears(holder, [holder], "4bit")
    layer, x = holder[0], torch.randn(3, width)
    given = x.clone().requires_grad_()
    with_gradient = layer.train()(given)
    with_gradient.sum().backward()
    torch.testing.assert_close(given.grad, dequantized(layer).sum(0).expand_as(x))
    stored = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with torch.no_grad():
        training, evaluating = layer(x), layer.eval()(x)
    assert torch.equal(evaluating, training) and torch.equal(evaluating, with_gradient)
    torch.testing.assert_close(evaluating, torch.nn.functional.linear(x, dequantized(layer), linear.bias))
    assert relative(dequantized(layer), linear.weight) < 0.11
    assert all(torch.equal(tensor, stored[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(copy.deepcopy(layer)(x), evaluating)


def test_a_4bit_captioner_has_the_same_layers(packing):
    # red without `freeze_4bit` in `captioner.load_model`
    model = Captioner("shipped:scenes/encoder", "", max_new_tokens=1, temperature=0.0, quantization="4bit").model
    assert {type(module) for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)} == {FrozenLinear4bit}


def test_bitsandbytes_is_imported_without_the_hub(packing, monkeypatch, caplog):
    # red if `sys.modules["kernels"] = None` or the logger's level goes
    asked = []
    kernels = SimpleNamespace(get_kernel=lambda *args, **options: asked.append(args))
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    monkeypatch.setattr("bitsandbytes._ops.register_kernel", lambda *_: lambda function: function)
    with caplog.at_level(logging.WARNING):
        spec = sys.modules["bitsandbytes.backends.cpu.ops"].__spec__
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    assert module.gemm_4bit_forward_kernel is None and not asked and not caplog.records
    assert sys.modules["kernels"] is kernels
