"""The slope of a function of one number between two points: what it makes of the change from one to the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def secant(apply: Function, x: Tensor, start: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
    """A function's value at `x`, and its slope from `start` to `x`; where the two meet, the derivative between.

    For functions of some names the slope has a closed form that neither divides by a small step nor subtracts two
    near values.
    """
    y = apply(x)
    if name in _CLOSED:
        return y, _CLOSED[name](apply, x, start)
    step, change, noise = x - start, y - apply(start), 1e3 * torch.finfo(x.dtype).eps
    slope = change / step
    near = ~(step.abs() >= noise * (1 + x.abs()))  # also where both are infinite
    if not bool(near.any()):
        return y, slope
    # A function that is steep there changes by more than the rounding of its values: then the secant can be trusted.
    near &= change.abs_() <= noise * y.abs()
    return y, torch.where(near, _derivative(apply, (x + start) / 2), slope)


def _derivative(apply: Function, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(apply(x).sum(), x)
    return derivative.nan_to_num_(0.0, 0.0, 0.0)


def _relu(_: Function, x: Tensor, start: Tensor) -> Tensor:
    # The larger end over the distance is more than 1 if both are positive, and less than 0 if both are negative.
    distance = (x - start).abs_().add_(torch.finfo(x.dtype).tiny)
    return torch.maximum(x, start).div_(distance).clamp_(0, 1)


def _leaky_relu(apply: Function, x: Tensor, start: Tensor) -> Tensor:
    below = -float(apply(-x.new_ones(())))
    return _relu(apply, x, start).mul_(1 - below).add_(below)


_CLOSED: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "square": lambda _, x, start: x + start,
}
