import torch

from uae_lightning.algorithms.matching import matching_logp, nft_loss, optimality, policy_decay


def draw(seed: int) -> torch.Tensor:
    return torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_optimality_is_half_for_the_average_and_clipped():
    # red if 0.5 + becomes 0.5 -, or the clamp goes
    torch.testing.assert_close(
        optimality(torch.tensor([0.0, 1.0, -2.0, 9.0, -9.0]), limit=4.0), torch.tensor([0.5, 0.625, 0.25, 1.0, 0.0])
    )


def test_on_policy_the_gradient_is_matching_weighted_by_the_advantage():
    # red if `way` is 1 for both branches, sigma or a factor is left out, or the size of the error is not a constant
    velocity, target, sigma = draw(0).requires_grad_(), draw(1), torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1])
    advantages = torch.tensor([4.0, 2.0, 0.0, -2.0, -4.0])
    good = optimality(advantages, limit=4.0)
    nft_loss(velocity, velocity.detach(), target, sigma, good, strength=0.7, limit=4.0).sum().backward()
    error = (velocity - target).detach()
    size = error.abs().mean((1, 2, 3))
    weight = advantages * sigma / size * 2 / error[0].numel()
    torch.testing.assert_close(velocity.grad, weight.view(-1, 1, 1, 1) * error)
    assert velocity.grad[2].abs().max() < 1e-7  # the average sample teaches nothing


def test_a_good_sample_pulls_and_a_bad_one_pushes():
    # red if `good` and `1 - good` change places
    old, target = draw(0), draw(1)
    sigma, towards = torch.full((5,), 0.5), 0.9 * draw(0) + 0.1 * draw(1)
    for good, better in ((torch.ones(5), True), (torch.zeros(5), False)):
        moved = nft_loss(towards, old, target, sigma, good, strength=1.0, limit=1.0)
        stayed = nft_loss(old, old, target, sigma, good, strength=1.0, limit=1.0)
        assert bool((moved < stayed).all()) == better


def test_the_implicit_negative_policy_is_the_mirror_image():
    # red if `strength` multiplies one branch only: of equal weights the sum must not prefer a direction
    old, target, sigma, half = draw(0), draw(0), torch.full((5,), 0.5), torch.full((5,), 0.5)
    forth = nft_loss(old + draw(2), old, target, sigma, half, strength=0.3, limit=1.0)
    back = nft_loss(old - draw(2), old, target, sigma, half, strength=0.3, limit=1.0)
    torch.testing.assert_close(forth, back)


def test_the_loss_is_the_published_one_so_that_a_published_kl_weight_holds():
    # red if `limit / strength` is turned round or left out: the KL weight of 1e-4 in config/nft.py would be another's.
    # The formula as train_nft_sd3.py of NVlabs/DiffusionNFT (24af555) has it, in errors of x0 = x - sigma v
    velocity, target, old, sigma = draw(0), draw(1), draw(0) + 0.1 * draw(2), torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1])
    advantages, strength, limit = torch.tensor([7.0, 2.0, 0.1, -2.0, -9.0]), 0.1, 5.0

    def branch(share: float) -> torch.Tensor:
        error = sigma.view(-1, 1, 1, 1) * ((1 - share) * old + share * velocity - target)
        return (error.square() / error.abs().mean((1, 2, 3), keepdim=True)).mean((1, 2, 3))

    good = (advantages.clamp(-limit, limit) / limit / 2 + 0.5).clamp(0, 1)
    published = limit * (good * branch(strength) / strength + (1 - good) * branch(-strength) / strength)
    found = nft_loss(velocity, old, target, sigma, optimality(advantages, limit), strength=strength, limit=limit)
    torch.testing.assert_close(found, published)


def test_the_lag_of_the_sampling_policy_is_diffusion_nfts():
    # red if `step - flat` becomes `step`, min becomes max, or the flat part is negative
    ocr = [policy_decay(step, flat=75, rate=0.0075, limit=0.999) for step in (0, 74, 75, 95, 500)]
    assert ocr == [0, 0, 0, 0.15, 0.999]
    assert [policy_decay(step, flat=0, rate=0.001, limit=0.5) for step in (100, 900)] == [0.1, 0.5]


def test_matching_logp_is_the_flow_matching_error():
    # red if the sign goes, or the mean becomes a sum
    torch.testing.assert_close(matching_logp(draw(0) + 2, draw(0)), torch.full((5,), -4.0))
