"""How much a drawing depends on each of the states it is drawn from: the size of its Jacobian there.

    L, D   states of a text and their channels
    P      values of a picture
    J_l    d picture / d state l, [P, D]
    v      a random direction among pictures, N(0, 1)^P

The gradient of v . picture at state l is J_l^T v, and the mean of its squared norm over directions is |J_l|^2, the sum
of the squares of all derivatives (Hutchinson, 1990): a picture has one gradient for each of its values, and this is
their size together. One backward pass through the drawing a direction.

A state that moves by noise of size s in each channel moves the picture by s |J_l| in all; of several states the squares
add up.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def sensitivity(
    draw: Callable[[Tensor], Tensor], states: Tensor, directions: int, generator: torch.Generator
) -> Tensor:
    """|J_l| of a drawing at each of its states: [L], 0 where it does not look.

    Args:
        draw: states [1, L, D] -> a picture of any shape, with gradient.
        states: [1, L, D].
        directions: v that are tried; the spread of the result falls with the root of their number.
        generator: they are drawn from, on the CPU.
    """
    states = states.detach().requires_grad_()
    with torch.enable_grad():
        picture = draw(states)
    squares = states.new_zeros(states.shape[1])
    for _ in range(directions):
        v = torch.randn(picture.shape, generator=generator).to(picture)
        (gradient,) = torch.autograd.grad(picture, states, v, retain_graph=True)
        squares += gradient[0].square().sum(-1)
    return (squares / directions).sqrt()
