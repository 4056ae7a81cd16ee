import math

import pytest
import torch

from uae_lightning.algorithms.token_logprobs import entropy, gather_logprobs, logprobs_and_entropy


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(2, 5, 11, generator=generator)).to(dtype)
    return logits, torch.randint(11, (2, 5), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_those_of_a_categorical_distribution(dtype, temperature):
    # Red if logits / temperature becomes logits * temperature, or .float() goes.
    logits, tokens = example(dtype)
    policy = torch.distributions.Categorical(logits=logits.float() / temperature)
    logp = gather_logprobs(logits, tokens, temperature=temperature)
    assert logp.dtype == torch.float32 and logp.shape == (2, 5)
    torch.testing.assert_close(logp, policy.log_prob(tokens))
    torch.testing.assert_close(entropy(logits, temperature=temperature), policy.entropy())


def test_gradient_is_one_hot_minus_softmax():
    # Red if "chosen -" becomes "chosen +".
    logits, tokens = example()
    logits.requires_grad_()
    gather_logprobs(logits, tokens).sum().backward()
    expected = torch.nn.functional.one_hot(tokens, 11) - logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_of_the_entropy_is_that_of_its_definition(temperature):
    # Red if entr(p) - becomes entr(p) +, or the temperature is applied behind the Function.
    logits, tokens = example()
    logits.index_fill_(-1, torch.tensor([3]), -torch.inf)  # forbidden: no gradient, and no NaN
    tokens = tokens.where(tokens != 3, 4)
    ours, plain = logits.clone().requires_grad_(), logits.double().requires_grad_()
    logp, found = logprobs_and_entropy(ours, tokens, temperature=temperature)
    log_p = (plain / temperature).log_softmax(-1)
    wanted = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)
    weights = torch.linspace(-1, 2, 10).view(2, 5)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad.double(), plain.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(logp, gather_logprobs(logits, tokens, temperature=temperature))
    assert torch.equal(found, entropy(logits, temperature=temperature)) and (ours.grad != 0).any(-1).all()


def test_large_logits_do_not_overflow():
    # Red if logsumexp becomes exp().sum().log().
    logits = torch.tensor([[1000.0, 0.0]])
    assert gather_logprobs(logits, torch.tensor([0])).item() == 0
    assert gather_logprobs(logits, torch.tensor([1])).item() == -1000


def test_entropy_of_uniform_and_of_certain_and_with_forbidden_tokens():
    # Red if entr(e) becomes -e * e.log(): 0 * -inf is NaN.
    assert entropy(torch.zeros(3, 8)).tolist() == pytest.approx([math.log(8)] * 3)
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    assert entropy(logits).tolist() == pytest.approx([math.log(2), 0.0])
    assert logits[1].tolist() == [0.0, -torch.inf, -torch.inf]  # not written over


def test_entropy_is_exact_at_the_vocabulary_of_qwen():
    # Red with logsumexp - sum p z (5e-4), or with `softmax` in place of e / S (6e-5).
    logits = 4 * torch.randn(8, 151_936, generator=torch.Generator().manual_seed(0)) + 20
    assert entropy(torch.zeros(1, 151_936)).item() == pytest.approx(math.log(151_936), abs=2e-6)
    log_p = logits.double().log_softmax(-1)
    wanted = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(entropy(logits).double(), wanted, atol=2e-6, rtol=0)


def test_bad_arguments_are_named():
    # Red if a check is turned round: gather alone would take too short a row of tokens without a word.
    logits, tokens = example()
    with pytest.raises(ValueError, match="vocabulary"):
        gather_logprobs(logits, tokens[:, :3])
    with pytest.raises(ValueError, match="temperature"):
        gather_logprobs(logits, tokens, temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        entropy(logits, temperature=-1.0)
