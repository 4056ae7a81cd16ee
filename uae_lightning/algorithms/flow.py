"""Rectified flow: straight lines from a picture to noise, and the way back along them.

    B           pictures in a batch
    C, h, w     channels, height and width of the latents
    S           sampling steps
    x0          clean latents                  [B, C, h, w]
    n           noise, N(0, I)                 [B, C, h, w]
    sigma       noise level: 0 is the picture, 1 is pure noise; a float, [] or [B]
    x           = (1 - sigma) x0 + sigma n     [B, C, h, w]
    v           = dx / dsigma = n - x0         [B, C, h, w]

    Rectified flow             Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747
    Logit-normal, mode, shift  Stable Diffusion 3, arXiv 2403.03206, section 3.1 and eq. 23
    Weights of the loss        the same, and the SD3 training scripts of diffusers: see `velocity_weight`
    Guidance                   Ho and Salimans, arXiv 2207.12598

Sigmas are held in fp32 and enter as tensors with dimensions, so half-precision latents are promoted: arithmetic is
never below fp32. The caller casts for the network.
"""

import math
from typing import Literal, TypedDict, TypeVar

import torch
from torch import Tensor

SigmaDistribution = Literal["logit_normal", "mode", "shifted_uniform", "uniform"]
LossWeighting = Literal["none", "sigma_sqrt", "cosmap"]
Level = TypeVar("Level", float, Tensor)

TRAIN_LEVELS = 1000  # num_train_timesteps of SD3's scheduler: its lowest noise level is the shifted 1/1000


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """Shape a scalar or a [B] vector so that it broadcasts over `like` [B, ...]: fp32, [1, 1, ...] or [B, 1, ...].

    Raises:
        ValueError: neither one value nor B of them.
    """
    value = torch.as_tensor(value, dtype=torch.float32, device=like.device)
    if value.numel() not in (1, like.shape[0]):
        raise ValueError(f"expected one value or {like.shape[0]} (one per sample), got shape {list(value.shape)}")
    return value.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity a decoder has to predict there: the training pair.

    Args:
        x0, noise: [B, C, h, w].
        sigma: float, [] or [B].

    Returns:
        (x_sigma, velocity), each [B, C, h, w]: x = (1 - sigma) x0 + sigma n and v = n - x0 (arXiv 2403.03206 eq. 13).

    Raises:
        ValueError: `x0` and `noise` differ in shape, or `sigma` is not one value per sample.
    """
    if x0.shape != noise.shape:
        raise ValueError(f"x0 {list(x0.shape)} and noise {list(noise.shape)} must have the same shape")
    sigma = per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise, noise - x0


def shift_sigma(sigma: Level, shift: float) -> Level:
    """Move noise levels up as larger pictures need it: shift * s / (1 + (shift - 1) s) (arXiv 2403.03206 eq. 23).

    Keeps 0 and 1, keeps the order, and adds log(shift) to logit(s).
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigma(
    batch_size: int,
    *,
    distribution: SigmaDistribution = "logit_normal",
    shift: float = 3.0,
    mean: float = 0.0,
    std: float = 1.0,
    mode_scale: float = 1.29,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Noise levels to train at.

    Args:
        batch_size: B.
        distribution:
            ``"logit_normal"``     sigmoid(mean + std * N(0, 1)): mostly the middle, where the task is hard (SD3).
            ``"mode"``             SD3's density with heavy tails (arXiv 2403.03206 eq. 20), then shifted.
            ``"shifted_uniform"``  uniform, then shifted: the levels an evenly spaced sampler with this shift visits.
            ``"uniform"``          uniform.
        shift: of "shifted_uniform" and "mode" alone.
        mean, std: of "logit_normal" alone. A shift k of its levels is the same as mean + log(k).
        mode_scale: s of "mode" alone; 0 is uniform.
        generator: where the randomness comes from.
        device: where the result goes; the numbers are drawn on the generator's device.

    Returns:
        [B] fp32 in (0, 1].

    The SD3 scripts of diffusers (train_dreambooth_lora_sd3.py at 58eb52c0) draw a place in a schedule that runs
    from noise to picture and is shifted by k = 3 already:

        weighting_scheme logit_normal (the default)   "logit_normal", mean = log(k) - logit_mean: 1.0986 by default
        weighting_scheme mode                         "mode", shift = k
        weighting_scheme sigma_sqrt, cosmap           "shifted_uniform", shift = k

    Raises:
        ValueError: unknown `distribution`, `shift` or `std` not positive, `mean` not finite, or `mode_scale` outside
            [-1, 2 / (pi - 2)].
    """
    if not (0 < shift < math.inf and 0 < std < math.inf and math.isfinite(mean)):
        raise ValueError(f"shift and std must be positive and mean finite, got {shift}, {std} and {mean}")
    if not -1 <= mode_scale <= 2 / (math.pi - 2):
        raise ValueError(f"mode_scale must lie in [-1, 1.75], else the levels leave [0, 1]; got {mode_scale}")
    source = generator.device if generator is not None else device
    if distribution == "logit_normal":
        sigma = torch.sigmoid(mean + std * torch.randn(batch_size, generator=generator, device=source))
    elif distribution in ("mode", "uniform", "shifted_uniform"):
        sigma = 1 - torch.rand(batch_size, generator=generator, device=source)  # in (0, 1]: rand may be 0, never 1
        if distribution == "mode":  # of 1 - u, which for this density is 1 less that of u
            sigma = sigma + mode_scale * (sigma - (math.pi / 2 * sigma).sin().square())
        if distribution != "uniform":
            sigma = shift_sigma(sigma, shift)
    else:
        names = "'logit_normal', 'mode', 'shifted_uniform' or 'uniform'"
        raise ValueError(f"distribution must be {names}, got {distribution!r}")
    return sigma.to(device) if device is not None else sigma


class SigmaLevels(TypedDict):
    """Options of `sample_sigma`."""

    distribution: SigmaDistribution
    shift: float
    mean: float
    std: float
    mode_scale: float


def sigma_levels(
    distribution: SigmaDistribution, shift: float, mean: float, std: float, mode_scale: float
) -> SigmaLevels:
    """Options of `sample_sigma`, checked before any training (ValueError)."""
    options = SigmaLevels(distribution=distribution, shift=shift, mean=mean, std=std, mode_scale=mode_scale)
    sample_sigma(1, **options, generator=torch.Generator())
    return options


def velocity_weight(sigma: Tensor, weighting: LossWeighting = "none", *, precondition_outputs: bool = False) -> Tensor:
    """What |v - u|^2 is multiplied by in the flow-matching loss, by the names of diffusers' SD3 scripts.

    Args:
        sigma: [B] in (0, 1].
        weighting:
            ``"none"``        1: every level counts the same.
            ``"sigma_sqrt"``  1 / sigma^2; where sigma is below 1/1000, the weight of that.
            ``"cosmap"``      2 / (pi (1 - 2 sigma + 2 sigma^2)) (arXiv 2403.03206 eq. 21).
        precondition_outputs: the error is that of the predicted x0 = x - sigma v: sigma^2 more. The scripts' default.

    Returns:
        [B] fp32.

    Raises:
        ValueError: unknown `weighting`.
    """
    sigma = sigma.float()
    if weighting not in ("none", "sigma_sqrt", "cosmap"):
        raise ValueError(f"weighting must be 'none', 'sigma_sqrt' or 'cosmap', got {weighting!r}")
    weight = torch.ones_like(sigma)
    if weighting == "sigma_sqrt":
        weight = sigma.clamp(min=1 / TRAIN_LEVELS) ** -2
    elif weighting == "cosmap":
        weight = 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))
    return weight * sigma.square() if precondition_outputs else weight


def sigma_schedule(steps: int, *, shift: float = 1.0, device: torch.device | str | None = None) -> Tensor:
    """The noise levels of a sampler, from 1 to 0.

    The same numbers as `FlowMatchEulerDiscreteScheduler(shift=shift).set_timesteps(steps)` of diffusers, which the SD3
    pipeline calls. Two of its habits are therefore ours: the even spacing ends at the lowest level of training (the
    shifted 1/1000) rather than at 1/steps, so the last step before 0 is a tiny one; and shift is applied to that
    spacing, so to the lowest level twice. The timestep SD3's network is given is 1000 * sigma.

    Args:
        steps: S, at least 1.
        shift: 3.0 for SD3; 1.0 leaves the spacing even.
        device: where the result goes.

    Returns:
        [S + 1] fp32, strictly descending, first 1, last 0.

    Raises:
        ValueError: `steps` below 1, or `shift` not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    even = torch.linspace(1.0, shift_sigma(1 / TRAIN_LEVELS, shift), steps, dtype=torch.float64)
    sigmas = torch.cat([shift_sigma(even, shift), even.new_zeros(1)])
    return sigmas.to(device=device, dtype=torch.float32)


def euler_step(x: Tensor, velocity: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
    """One step of the ODE: x + v (sigma_next - sigma). [B, C, h, w] -> [B, C, h, w], at least fp32."""
    return x + velocity * (per_sample(sigma_next, x) - per_sample(sigma, x))


def guide(v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: v_uncond + guidance (v_cond - v_uncond); guidance 1 leaves the conditional velocity.

    All [B, C, h, w]. What samples depends on the weights through both branches, so the gradient of its log-probability
    does, too. Flow-GRPO's code detaches v_uncond up to 2025-08-18, and no longer from yifan123/flow_grpo@a482878 of
    2025-08-19 ("fix cfg gradient detach") on.
    """
    return v_uncond + guidance * (v_cond - v_uncond)


def predict_noise(x: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """The noise this velocity comes from: n^ = x + (1 - sigma) v. [B, C, h, w]."""
    return x + (1 - per_sample(sigma, x)) * velocity
