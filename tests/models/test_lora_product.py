"""LoRA in one product, against peft's three."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from uae_lightning.models.adapters import adapters_off, add_lora
from uae_lightning.models.lora_product import OneProduct, merged_while
from uae_lightning.types import LoRA

LORA = LoRA(rank=4, alpha=6, targets=["0", "2"])


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.SiLU(), nn.Linear(20, 7, bias=False)).to(dtype)
    add_lora(model, LORA, [], torch.get_rng_state())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def as_peft_has_it(model: nn.Sequential) -> nn.Sequential:
    other = copy.deepcopy(model)
    for index in (0, 2):
        del other[index].forward
    return other


def rows() -> torch.Tensor:
    return torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_values_and_gradients_are_those_of_peft():
    # red if the scale is left out of any line, or A and B are swapped in the gradients
    results = []
    for model in (made := make_model(), as_peft_has_it(made)):
        x = rows()
        y = model(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert isinstance(made[0].forward, OneProduct) and len(results[0]) == 6
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)


def test_the_reference_is_the_model_without_adapters():
    # red if `disable_adapters` is not asked, or the sum is kept after `merged_while`
    model, x = make_model(), rows()
    with merged_while(model):
        merged = model(x)
    torch.testing.assert_close(merged, model(x))
    with adapters_off(model), merged_while(model):
        plain = model(x)
    base = [model[index].base_layer for index in (0, 2)]
    assert torch.equal(plain, base[1](nn.functional.silu(base[0](x))))
    assert not torch.allclose(plain, model(x), atol=1e-2)


def test_a_step_inside_two_uses_is_seen():
    # red if the sum of the first `merged_while` is used in the second
    model, x = make_model(), rows()
    with merged_while(model):
        before = model(x)
    with torch.no_grad():
        model[0].lora_A["default"].weight.mul_(2)
    with merged_while(model):
        assert not torch.allclose(model(x), before, atol=1e-3)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_weights_that_would_round_the_sum_are_left_to_peft(how):
    # red if the dtype of the weight, or autocast, is not looked at: 0.3% of the update would be lost
    model = make_model(torch.bfloat16 if how == "bfloat16" else torch.float32)
    x = rows().detach().to(model[0].base_layer.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"), merged_while(model):
        assert torch.equal(model(x), as_peft_has_it(model)(x))
        assert all(model[index].forward.sum is None for index in (0, 2))
