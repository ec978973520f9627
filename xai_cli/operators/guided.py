"""Guided backprop and DeconvNet as rule sets: rectifiers let only positive gradients back, all else its plain gradient.

    guided      g_x = max(g_y, 0) max(f'(x), 0)     where signal and gradient are positive      (Springenberg 2014)
    deconvnet   g_x = max(g_y, 0)                   whatever the signal was             (Zeiler and Fergus 2013)

For ReLU, `f'(x) = 1[x > 0]`, these are the published rules. For other rectifiers `y = f(x)` they are the generalised
gate, which the papers do not know: leaky ones let the gradient of negative signals back by their slope, smooth ones by
their derivative as far as it is positive. Max-pooling remembers its switches, as its gradient does anyway.

Springenberg et al. 2014 (arXiv:1412.6806); Zeiler and Fergus 2013 (arXiv:1311.2901).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xai_cli.operators.rules import Rules

_HINGES = {"relu", "relu6"}
# Hinges by another name, if their bounds are such.
_CUTS = {"clamp", "clamp_min", "hardtanh", "threshold", "maximum"}
_OTHERS = {
    "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "softplus",
}  # fmt: skip
RECTIFIERS = _HINGES | _OTHERS


class Gates(Rules):
    """Rectifiers as gates for the gradient; notes in `met` which ones there were."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    def pointwise(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The function's value; if it is a rectifier, with the gate as its gradient."""
        if name not in RECTIFIERS and not (name in _CUTS and _is_hinge(apply, x)):
            return apply(x)
        self.met.add(name)
        return self.gated(name, apply, x)

    @abstractmethod
    def gated(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A rectifier's value with the gate as its gradient."""

    @property
    def told(self) -> str:
        """Which gates there were: the published one of ReLU, the generalised one, or both."""
        others = ", ".join(sorted(self.met & _OTHERS))
        gates = {"relu": self.met - _OTHERS, f"generalised gate of {others}": others}
        return "; ".join(name for name, met in gates.items() if met)


class Guided(Gates):
    """What is positive of the gradient passes where the rectifier rises."""

    def gated(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The gate on both sides of the slope, which may be negative itself."""
        if name == "relu":
            return _GuidedRelu.apply(x)
        y = apply(_Positive.apply(x, x))
        return _Positive.apply(y, y)


class Deconvnet(Gates):
    """What is positive of the gradient passes."""

    def gated(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return _Positive.apply(x, apply(x.detach()))


class _Positive(torch.autograd.Function):
    """`y` going forward; going back, `x` gets what is positive of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].clamp_min(0), None


class _GuidedRelu(torch.autograd.Function):
    """The general gate at ReLU, without a tensor in between: most nets spend most of their gates there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0).clamp_min_(0)


@torch.no_grad()
def _is_hinge(apply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """True for `max(x, 0)`, perhaps with an upper bound: what it does is all that can be seen of it."""
    return all(bool((apply(x.new_tensor(at)) == to).all()) for at, to in ((-2.0, 0), (-1.0, 0), (0.5, 0.5)))
