"""Denoising as a stochastic policy: each step is a Gaussian whose log-probability can be trained.

    N            = P * G pictures being denoised (P prompts, G samples each)
    C, h, w      channels, height and width of the latents
    x            latents at noise level sigma           [N, C, h, w]
    v            velocity the decoder predicts there    [N, C, h, w]
    s, s'        sigma now and after the step, s > s' >= 0, dt = s' - s < 0
    a            noise_level
    n^           = x + (1 - s) v, the noise the decoder believes is in x
    mu, std      the step samples x' ~ N(mu, std^2)     [N, C, h, w], [N or 1, 1, 1, 1]

    Flow-GRPO    arXiv 2505.05470, and its code where it differs: see `sde_step`
    DanceGRPO    arXiv 2505.07818, and its code, 15cc71d of 2025-10-16
    CPS          arXiv 2509.05952, coefficients-preserving sampling
    MixGRPO      arXiv 2507.21802, a window of stochastic steps that slides: `sliding_window`
    Fast         Flow-GRPO-Fast, a window drawn for every batch: `drawn_window`
    GRPO-Guard   arXiv 2510.22319, ratios that mean the same at every step: `normalized_log_ratio`

All samplers are one idea, an Euler step that takes some of the believed noise out and puts fresh noise in:

    mu = x + v dt - c n^        flow_sde   c = sigma_t^2 |dt| / (2 s)     std = sigma_t sqrt|dt|
                                           where sigma_t = a sqrt(s / (1 - s))
                                dance_sde  the same, where sigma_t = a
                                cps        c = s' (1 - cos(a pi/2))       std = s' sin(a pi/2)

(The papers write the first two as x + [v + sigma_t^2/(2s) (x + (1-s) v)] dt and the third as
(1-s') x0^ + sqrt(s'^2 - std^2) n^; the algebra is the same.) With a = 0 all are the Euler step, to the last bit.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .flow import euler_step, per_sample, predict_noise

SDEKind = Literal["flow_sde", "dance_sde", "cps"]
Reduction = Literal["mean", "sum"]
LogProbForm = Literal["normal", "squared_error"]


@dataclass(frozen=True)
class SDEStep:
    """One step of the denoising policy; everything fp32."""

    prev: Tensor  # [N, C, h, w] the latents at sigma_next: sampled, or those given. Keep them in fp32 for the replay
    mean: Tensor  # [N, C, h, w] with gradient to the velocity
    velocity: Tensor  # [N, C, h, w] that was given
    std: Tensor  # [N or 1, 1, 1, 1], sqrt|dt| included
    mean_log_prob: Tensor  # [N] log-probability of prev, over C, h, w: their mean (or sum, see log_prob_reduction)


def sde_step(
    x: Tensor,
    velocity: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    noise_level: float,
    *,
    prev: Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    kind: SDEKind = "flow_sde",
    log_prob_reduction: Reduction = "mean",
    log_prob_form: LogProbForm = "normal",
) -> SDEStep:
    """Take one denoising step (`prev=None`) or score one that was taken (`prev=` its result), by the same code.

    Args:
        x, velocity: [N, C, h, w]; computed with in fp32 whatever their type, as in the Flow-GRPO code.
        sigma, sigma_next: float, [] or [N], with 1 >= sigma > sigma_next >= 0.
        noise_level: a. Flow-GRPO 0.7, DanceGRPO 0.3, CPS 0.8 (at most 1 there). At 0 the step is diffusers' Euler step.
        prev: [N, C, h, w] latents to score; None samples them. They are a constant to the log-probability.
        generator: where the noise comes from, one for all or one for each picture; it is drawn at noise level 0 too, so
            that a window of noisy steps moved along the schedule sees the same random stream.
        kind: "flow_sde"; "dance_sde", where as much noise is put in at all levels; or "cps", which keeps the noise
            level of the latents at what sigma_next says for any number of steps. In "flow_sde", sigma_t is infinite at
            sigma = 1; there sigma_next stands in the denominator, as in the Flow-GRPO code (its paper is silent).
        log_prob_reduction: over C, h, w. "mean" is the code of Flow-GRPO (hence clips like 1e-4), "sum" its paper.
        log_prob_form: "normal" is the log-density; "squared_error" is -(prev - mean)^2, with neither the variance nor
            constants: what the Flow-GRPO code does for CPS, whose clip ranges belong to it.

    Returns:
        SDEStep. Where std is 0 (noise level 0, or the last step of CPS) nothing is random, nothing can be learnt, and
        the log-probability is defined as 0, with gradient 0.

    Raises:
        ValueError: shapes that differ, sigmas out of order, a negative noise level, or an unknown choice.
    """
    _check(x, velocity, prev, noise_level, kind, log_prob_reduction, log_prob_form)
    x, velocity = x.float(), velocity.float()
    sigma, sigma_next = per_sample(sigma, x), per_sample(sigma_next, x)
    if not bool(((sigma <= 1) & (sigma > sigma_next) & (sigma_next >= 0)).all()):
        raise ValueError("a step needs 1 >= sigma > sigma_next >= 0: is the schedule descending?")

    removed, std = _coefficients(sigma, sigma_next, noise_level, kind)
    mean = euler_step(x, velocity, sigma, sigma_next) - removed * predict_noise(x, velocity, sigma)
    if prev is None:
        prev = mean + std * draw_noise(mean.shape, generator, mean.device)
    prev = prev.detach().float()
    log_prob = _log_prob(prev, mean, std, log_prob_form).flatten(1)
    log_prob = log_prob.mean(dim=1) if log_prob_reduction == "mean" else log_prob.sum(dim=1)
    return SDEStep(prev=prev, mean=mean, velocity=velocity, std=std, mean_log_prob=log_prob)


def draw_noise(
    shape: Sequence[int], generator: torch.Generator | list[torch.Generator] | None, device: torch.device
) -> Tensor:
    """Standard normal noise [N, ...] on `device`. From a list each row is drawn by a generator of its own: it does not
    depend on which rows are drawn together."""
    if isinstance(generator, list):
        noise = torch.empty(shape)
        for row, own in zip(noise, generator, strict=True):
            row.normal_(generator=own)
        return noise.to(device)
    return torch.randn(shape, generator=generator, device=device if generator is None else generator.device).to(device)


def _coefficients(sigma: Tensor, sigma_next: Tensor, noise_level: float, kind: SDEKind) -> tuple[Tensor, Tensor]:
    """How much of the believed noise is taken out (c), and the std of the fresh noise put in."""
    if kind == "cps":  # arXiv 2509.05952
        angle = noise_level * math.pi / 2
        return sigma_next * (1 - math.cos(angle)), sigma_next * math.sin(angle)
    dt = sigma - sigma_next  # |dt|
    if kind == "dance_sde":
        sigma_t = torch.full_like(sigma, noise_level)  # arXiv 2505.07818: a constant
    else:
        below_one = torch.where(sigma == 1, sigma_next, sigma)  # Flow-GRPO's code: sigma / (1 - sigma) is infinite at 1
        sigma_t = noise_level * (sigma / (1 - below_one)).sqrt()  # arXiv 2505.05470: sigma_t = a sqrt(t / (1 - t))
    return sigma_t.square() * dt / (2 * sigma), sigma_t * dt.sqrt()


def _log_prob(prev: Tensor, mean: Tensor, std: Tensor, form: LogProbForm) -> Tensor:
    """[N, C, h, w] log N(prev; mean, std^2), 0 where std is 0."""
    random = std > 0
    safe_std = std.masked_fill(~random, 1.0)
    error = (prev - mean).square()
    if form == "squared_error":
        log_prob = -error
    else:
        log_prob = -error / (2 * safe_std.square()) - safe_std.log() - 0.5 * math.log(2 * math.pi)
    return log_prob.masked_fill(~random, 0.0)


def normalized_log_ratio(log_ratio: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor) -> Tensor:
    """RatioNorm of GRPO-Guard: (log r + ||mu - mu_old||^2 / (2 std^2)) std, which is <e, mu - mu_old>.

    With x' = mu_old + std e, log r is <e, mu - mu_old> / std - ||mu - mu_old||^2 / (2 std^2): below zero on average, by
    more the smaller std is, so that one clip range binds the steps unequally and good samples less than bad ones.

    Args:
        log_ratio: [N] of the densities, means over C, h, w; with gradient.
        mean: [N, C, h, w] of the policy in training, with gradient.
        old_mean: [N, C, h, w] of the policy that sampled.
        std: as `SDEStep.std`.

    Returns:
        [N], on average zero; exactly 0 for a step without noise. GRPO-Guard then divides the loss by |dt|: mu moves by
        about |dt| times the velocity.
    """
    std = std.flatten()
    drift = (mean.float() - old_mean.detach().float()).square().flatten(1).mean(dim=1)
    return log_ratio * std + drift / (2 * std.masked_fill(std == 0, torch.inf))


def sliding_window(
    first: tuple[int, int], batches: int, *, every: int, steps: int, roll_back: bool = False
) -> tuple[int, int]:
    """MixGRPO: `first` moved on by one step for every `every` batches, up to the last step but one of the sampler.

    There it stays, or with `roll_back` begins again at `first`, as the script of MixGRPO does (Tencent-Hunyuan/MixGRPO
    e5cdd6a of 2025-08-08, which trains cut windows, and one without steps, before it begins again; here all are whole).
    The last step ends at sigma 0, where CPS has no noise to learn from; Flow-GRPO leaves it out as well.
    """
    width, moved = first[1] - first[0], batches // every
    places = max(1, steps - width - first[0])
    start = first[0] + (moved % places if roll_back else min(moved, places - 1))
    return start, start + width


def drawn_window(within: tuple[int, int], width: int, seed: int) -> tuple[int, int]:
    """Flow-GRPO-Fast: `width` steps anywhere in [first, last + 1], all places equally likely.

    As sd3_pipeline_with_logprob_fast.py of flow_grpo (9745241, 2025-11-04) draws it, there once for each batch of each
    device.
    """
    start = random.Random(seed).randint(within[0], within[1] - width)
    return start, start + width


def sde_kl(
    mean: Tensor,
    ref_mean: Tensor,
    std: Tensor,
    *,
    include_dt: bool = True,
    dt: float | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL between two steps that differ in their mean: ||mu - mu_ref||^2 / (2 sigma_t^2 |dt|) (arXiv 2505.05470).

    Args:
        mean, ref_mean: [N, C, h, w] of the policy and of the reference (taken as a constant).
        std: of the step, as `SDEStep.std` gives it: sigma_t sqrt|dt|.
        include_dt: True is the KL of the two Gaussians, as in the paper. False leaves |dt| out of the denominator, as
            in the Flow-GRPO code: smaller by the factor |dt|, so the same beta pulls less.
        dt: sigma_next - sigma of the step, float, [] or [N]; needed to leave it out, and only then.
        reduction: over C, h, w; "mean" (code, goes with the mean log-probability) or "sum" (paper).

    Returns:
        [N] fp32; 0 for a step without noise.

    Raises:
        ValueError: shapes that differ, `include_dt=False` without `dt`, or an unknown reduction.
    """
    if mean.shape != ref_mean.shape:
        raise ValueError(f"mean {list(mean.shape)} and ref_mean {list(ref_mean.shape)} must have the same shape")
    if not include_dt and dt is None:
        raise ValueError("include_dt=False needs dt, the step's sigma_next - sigma, to take it out of std")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    random = std > 0
    kl = (mean.float() - ref_mean.detach().float()).square() / (2 * std.masked_fill(~random, 1.0).square())
    if dt is not None and not include_dt:
        kl = kl * per_sample(dt, mean).abs()
    kl = kl.masked_fill(~random, 0.0).flatten(1)
    return kl.mean(dim=1) if reduction == "mean" else kl.sum(dim=1)


def _check(
    x: Tensor, velocity: Tensor, prev: Tensor | None, noise_level: float, kind: str, reduction: str, form: str
) -> None:
    if x.ndim < 2 or x.shape != velocity.shape or (prev is not None and prev.shape != x.shape):
        shapes = [list(tensor.shape) for tensor in (x, velocity, prev) if tensor is not None]
        raise ValueError(f"x, velocity and prev must share one shape [N, C, h, w], got {shapes}")
    if kind not in ("flow_sde", "dance_sde", "cps"):
        raise ValueError(f"kind must be 'flow_sde', 'dance_sde' or 'cps', got {kind!r}")
    if noise_level < 0 or (kind == "cps" and noise_level > 1):
        raise ValueError(f"noise_level must not be negative, nor above 1 for 'cps', got {noise_level}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"log_prob_reduction must be 'mean' or 'sum', got {reduction!r}")
    if form not in ("normal", "squared_error"):
        raise ValueError(f"log_prob_form must be 'normal' or 'squared_error', got {form!r}")
