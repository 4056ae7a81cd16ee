"""What a stage lets a part learn: all of it, adapters, or nothing."""

from __future__ import annotations

import pytest
import torch
from conftest import adapted

from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Conditioning, LoRA

SMALL = LoRA(rank=4, alpha=8)


def trainable(part) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in part.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("make", ["make_encoder", "make_decoder"])
def test_adapters_are_drawn_from_the_state_the_part_was_built_in(make, request):
    # red if add_lora draws from the process's state, or changes it
    make = request.getfixturevalue(make)
    torch.manual_seed(7)
    at_once = make(SMALL)
    torch.manual_seed(7)
    later, other = make(), make()
    torch.randn(100)
    state = torch.get_rng_state()
    later.adapt(SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = trainable(later)
    assert drawn and all(torch.equal(tensor, drawn[name]) for name, tensor in trainable(at_once).items())
    assert not trainable(other)


def test_nothing_learns_again(make_decoder):
    # red without the first requires_grad_ of `adapt`
    decoder = make_decoder("all")
    decoder.adapt(None)
    assert not trainable(decoder)


def test_a_part_is_adapted_once(make_decoder):
    # red without the look at lora_layers: peft would put adapters on adapters
    decoder = make_decoder(SMALL)
    with pytest.raises(ValueError, match="has adapters already"):
        decoder.adapt(SMALL)


def test_all_weights_are_trained_as_they_were_stored(parts_folder, make_decoder):
    # red with `.float()` in place of reading them again: they would be those of bfloat16
    decoder = SD3Decoder(str(parts_folder / "decoder"), resolution=IMAGE_SIZE, sigma_spacing="even", dtype="bfloat16")
    assert {p.dtype for p in decoder.transformer.parameters()} == {torch.bfloat16}
    adapted(decoder, "all")
    stored = make_decoder().transformer.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in decoder.transformer.state_dict().items())
    conditioning = Conditioning(torch.ones(1, 3, 24), torch.ones(1, 3, dtype=torch.bool))
    decoder.velocity(torch.ones(1, *decoder.latent_shape), torch.ones(1), conditioning).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in decoder.parameters() if p.requires_grad)
