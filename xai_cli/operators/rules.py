"""What a rule set may bend: the kinds of operators that are not linear in the picture, each with its plain meaning.

A rule set overrides some of them. Each method returns the operator's exact value, as a tensor whose *gradient* is the
rule: then everything linear and structural (permute, cat, pad, mean, `+`) needs no rule, autograd is already right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


class NoRuleError(ValueError):
    """A form of a ruled operator that has no rule; its message names the form as an operator is named."""


def depends(value: Any) -> bool:
    """True for a tensor that moves with the picture."""
    return isinstance(value, Tensor) and value.requires_grad


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


@dataclass(frozen=True)
class Weighted:
    """One call of a convolution, a linear layer or a product with a constant: `apply(x, weight, bias)`.

    Attributes:
        channels: the axis of the output that `bias` belongs to, counted from the end.
    """

    kind: Literal["convolution", "linear"]
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    channels: int = -1

    def value(self) -> Tensor:
        """The operator's own output."""
        return self.apply(self.x, self.weight, self.bias)


class Rules:
    """The plain meaning of every kind of operator; rule sets inherit and override."""

    def weighted(self, call: Weighted) -> Tensor:
        """A convolution, a linear layer, a product with a constant matrix."""
        return call.value()

    def pointwise(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of each number alone."""
        return apply(x)

    def product(self, apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        """An operator that is linear in each of two operands which both depend on the picture."""
        return apply(left, right)

    def quotient(self, left: Tensor | float, right: Tensor) -> Tensor:
        """A division by something that depends on the picture."""
        return left / right

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """The softmax along `axis`."""
        return x.softmax(axis)

    def log_softmax(self, x: Tensor, axis: int) -> Tensor:
        """The logarithm of the softmax along `axis`."""
        return x.log_softmax(axis)

    def normalise(self, x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
        """`(x - mean) / sqrt(var + eps)` over `axes`; without the mean if it is not `centred`."""
        rest = x - x.mean(axes, keepdim=True) if centred else x
        return rest * (rest.square().mean(axes, keepdim=True) + eps).rsqrt()

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """`scale * x + shift`: a batch norm that could not be folded."""
        return x * scale + shift

    def selection(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The largest or smallest of several numbers: max-pooling, `amax`."""
        return apply(x)

    def constant(self, value: Tensor) -> Tensor:
        """Something added or joined that does not depend on the picture: a class token, a position embedding."""
        return value

    def passed(self, apply: Callable[..., Any], x: Tensor, out: Any) -> None:
        """Told after an operator that needs no rule took `x` to `out = apply(x)`."""

    def joined(self, apply: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[Tensor], out: Tensor) -> None:
        """Told after `cat` or `stack` made `out = apply(parts)`."""

    def rescaled(self, apply: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> None:
        """Told after each number of `x` was multiplied with a constant, or a constant added: `out = apply(x)`."""
