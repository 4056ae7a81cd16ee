"""Closed forms of what is distilled."""

import pytest
import torch

from uae_lightning.algorithms.distillation import forward_kl, rarity_weights, state_distance


def test_forward_kl_against_the_definition():
    # red if the two are exchanged, or the sum is over tokens
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 3, 5, 7, generator=generator).unbind(0)
    p, q = (torch.distributions.Categorical(logits=values) for values in (reference, logits))
    found = forward_kl(logits, reference)
    assert found.shape == (3, 5) and (found > 0).all()
    torch.testing.assert_close(found, torch.distributions.kl_divergence(p, q))


def test_forward_kl_pulls_to_the_reference_alone():
    # red if the reference keeps its gradient, or the gradient of p - p_ref is another
    logits, reference = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    logits, reference = logits.requires_grad_(), reference.requires_grad_()
    forward_kl(logits, reference).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - reference.detach().softmax(-1))
    assert reference.grad is None


def test_forbidden_tokens_cost_nothing():
    # red if the mask goes: 0 x inf
    for worst in (torch.finfo(torch.float32).min, -torch.inf):
        logits = torch.tensor([[0.0, 1.0, worst]], requires_grad=True)
        kl = forward_kl(logits, torch.tensor([[1.0, 0.0, torch.finfo(torch.float32).min]]))
        kl.sum().backward()
        assert kl.isfinite().all() and logits.grad.isfinite().all() and kl > 0.1


def test_state_distance_is_that_of_unit_vectors():
    # red if length counts, or 2 becomes 1
    a, b = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(2)).unbind(0)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(state_distance(a, b), (unit(a, dim=-1) - unit(b, dim=-1)).square().sum(-1))
    torch.testing.assert_close(state_distance(3 * a, a), torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(state_distance(a, -a), torch.full((3, 4), 4.0))


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.99])
def test_rare_tokens_weigh_more(balance):
    # red if counts are not the exponent
    weights = rarity_weights(torch.tensor([0, 1, 2, 10_000]), balance)
    assert weights[:2].tolist() == [1.0, 1.0]
    assert weights[2].item() == pytest.approx(1 / (1 + balance))  # 1 - b^2 = (1 - b) (1 + b)
    assert weights[3].item() == pytest.approx(1 - balance, rel=1e-5)
