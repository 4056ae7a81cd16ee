"""How far a decoder has gone from where it started, by its velocities.

    N           pictures at one noise level
    C, h, w     channels, height and width of the latents
    v, v_ref    velocities of the policy and of the reference at the same states    [N, C, h, w]

The mean of a step of `flow_sde` is linear in v: mu = x + v dt - c (x + (1 - s) v). Its KL to the reference's is thus
the distance of the velocities by a weight of the step,

    (|dt| + c (1 - s))^2 / (2 std^2)      in "flow_sde"  |dt| (1 + a^2/2)^2 (1 - s) / (2 a^2 s)

which is nothing at pure noise, where a picture's layout is decided, and grows towards the picture. The distance alone
weighs all steps the same.

    UniGRPO      arXiv 2603.23500: the distance in place of the KL
    NormGuard    arXiv 2606.27771: the norm grows by 5 to 15 percent in RL, and pictures get worse with it
"""

from torch import Tensor


def velocity_distance(velocity: Tensor, reference: Tensor) -> Tensor:
    """[N] |v - v_ref|^2, a mean over latents; the reference is a constant."""
    return (velocity.float() - reference.detach().float()).square().flatten(1).mean(1)


def norm_ratio(velocity: Tensor, reference: Tensor) -> Tensor:
    """[N] |v| / |v_ref|, without gradient; 1 where nothing has changed."""
    size, start = (each.detach().float().flatten(1).norm(dim=1) for each in (velocity, reference))
    return size / start
