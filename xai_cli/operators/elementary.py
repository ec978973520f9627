"""Operators of one step said in the kinds of `Rules`: each takes the rules, then what the operator of torch takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor

from xai_cli.operators.rules import NoRuleError, Rules, Weighted, depends

# Products with constants, and of two matrices


def linear(rules: Rules, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer, perhaps with a weight that depends on the picture."""
    if bias is not None and (depends(weight) or depends(bias)):
        return add(rules, linear(rules, x, weight), bias)
    if depends(weight):
        return bilinear(rules, F.linear, x, weight)
    return rules.weighted(Weighted("linear", F.linear, x, weight, bias))


def convolution(function: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """A convolution over so many axes, or its transpose."""

    def convolution(
        rules: Rules, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **settings: Any
    ) -> Tensor:
        def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return function(x, weight, bias, *rest, **settings)

        if bias is not None and (depends(weight) or depends(bias)):
            return add(rules, convolution(rules, input, weight, None, *rest, **settings), bias.reshape(-1, *[1] * axes))
        if depends(weight):
            return bilinear(rules, apply, input, weight)
        return rules.weighted(Weighted("convolution", apply, input, weight, bias, -1 - axes))

    return convolution


def matmul(rules: Rules, left: Tensor, right: Tensor) -> Tensor:
    return bilinear(rules, torch.matmul, left, right)


def einsum(rules: Rules, equation: str, *operands: Any) -> Tensor:
    """A sum of products of two operands."""
    tensors = operands[0] if isinstance(operands[0], tuple | list) else operands
    if len(tensors) == 1:
        return torch.einsum(equation, *tensors)
    if len(tensors) != 2:
        raise NoRuleError(f"einsum of {len(tensors)} operands")
    return bilinear(rules, partial(torch.einsum, equation), *tensors)


def addmm(rules: Rules, added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return add(rules, matmul(rules, left, right) * alpha, added * beta)


def bilinear(rules: Rules, apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """A product of two matrices: of two that depend on the picture, or a linear layer by another name."""
    if depends(left) and depends(right):
        return rules.product(apply, left, right)
    first = depends(left)

    def layer(x: Tensor, weight: Tensor, _: Tensor | None = None) -> Tensor:
        return apply(x, weight) if first else apply(weight, x)

    return rules.weighted(Weighted("linear", layer, *((left, right) if first else (right, left)), bias=None))


# Sums, products and quotients, number by number


def add(rules: Rules, left: Any, right: Any, *, alpha: float = 1, out: None = None) -> Tensor:
    """A sum; a constant in it is spread over the result."""
    right = right if alpha == 1 else right * alpha
    total = _filled(rules, left, right) + _filled(rules, right, left)
    if depends(left) != depends(right):
        x, constant = (left, right) if depends(left) else (right, left)
        rules.rescaled(lambda x: x + constant, x, total)
    return total


def sub(rules: Rules, left: Any, right: Any, *, alpha: float = 1) -> Tensor:
    return add(rules, left, mul(rules, right, -alpha))


def rsub(rules: Rules, right: Any, left: Any, *, alpha: float = 1) -> Tensor:
    return sub(rules, left, right, alpha=alpha)


def mul(rules: Rules, left: Any, right: Any) -> Tensor:
    """A product, of two that depend on the picture or with a constant."""
    if depends(left) and depends(right):
        return rules.product(torch.mul, left, right)
    x, constant = (left, right) if depends(left) else (right, left)
    return _rescaled(rules, lambda x: x * constant, x)


def div(rules: Rules, left: Any, right: Any, *, rounding_mode: str | None = None) -> Tensor:
    """A quotient; with rounding, a step function."""
    if rounding_mode is not None:
        return torch.div(left, right, rounding_mode=rounding_mode).detach()
    if depends(right):
        return rules.quotient(_filled(rules, left, right), right)
    return _rescaled(rules, lambda x: x / right, left)


def rdiv(rules: Rules, right: Tensor, left: Any) -> Tensor:
    return div(rules, left, right)


def addcmul(rules: Rules, added: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    return add(rules, added, mul(rules, left, right) * value)


def lerp(rules: Rules, start: Tensor, end: Tensor, weight: Any) -> Tensor:
    return add(rules, start, mul(rules, weight, sub(rules, end, start)))


# Parts put together


def join(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`cat` and `stack`: what does not depend on the picture among the parts is a constant."""

    def joined(rules: Rules, tensors: Sequence[Tensor], *rest: Any, **settings: Any) -> Tensor:
        parts = [part if depends(part) or not part.is_floating_point() else rules.constant(part) for part in tensors]
        out = function(parts, *rest, **settings)
        rules.joined(lambda tensors: function(tensors, *rest, **settings), tensors, out)
        return out

    return joined


def where(rules: Rules, condition: Tensor, left: Any, right: Any) -> Tensor:
    """One of two, place by place."""
    if condition.dtype != torch.bool:  # the method is `left.where(condition, right)`
        condition, left = left, condition
    return torch.where(condition, _filled(rules, left, right), _filled(rules, right, left))


def masked_fill(rules: Rules, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return torch.where(mask, _filled(rules, value, x), x)


def setitem(rules: Rules, x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy with some of its places filled anew."""
    changed = x.clone() if depends(x) else rules.constant(x.clone()).clone()
    changed[index] = value if depends(value) else _filled(rules, value, changed[index])
    return changed


def pad(rules: Rules, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """The picture amid zeros, its own numbers, or a constant."""
    out = _linear(rules, lambda x: F.pad(x, pad, mode), x)
    if not value:
        return out
    return masked_fill(rules, out, F.pad(torch.zeros_like(x, dtype=torch.bool), pad, value=True), value)


def grid_sample(rules: Rules, x: Tensor, grid: Tensor, *rest: Any, **settings: Any) -> Tensor:
    """Numbers between those of a grid, at places that do not depend on the picture."""
    if depends(grid):
        raise NoRuleError("grid_sample at places that depend on the picture")
    return _linear(rules, lambda x: F.grid_sample(x, grid, *rest, **settings), x)


def _rescaled(rules: Rules, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    out = apply(x)
    rules.rescaled(apply, x, out)
    return out


def _linear(rules: Rules, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A form of an operator that needs no rule."""
    out = apply(x)
    rules.passed(apply, x, out)
    return out


def _filled(rules: Rules, value: Any, other: Any) -> Any:
    """A constant operand in the full shape of the result, because only there it is known which picture uses it."""
    if depends(value) or not depends(other):
        return value
    # The type of the result, because a number in full shape would no longer give way to the type of `other`.
    tensor = torch.as_tensor(value, dtype=torch.result_type(value, other), device=other.device)
    return rules.constant(tensor.expand(torch.broadcast_shapes(tensor.shape, other.shape)))


# Functions of each number alone, and of several


def pointwise(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of each number alone, called `name`."""

    def pointwise(rules: Rules, x: Tensor, *rest: Any, inplace: bool = False, **settings: Any) -> Tensor:
        # A truth value by place says whether to work in place, or to train.
        rest = tuple(each for each in rest if not isinstance(each, bool))
        if not depends(x) or any(map(depends, (*rest, *settings.values()))):
            raise NoRuleError(f"{name} with a bound that depends on the picture")
        return rules.pointwise(name, lambda x: function(x, *rest, **settings), x)

    return pointwise


def glu(rules: Rules, x: Tensor, dim: int = -1) -> Tensor:
    signal, gate = x.chunk(2, dim)
    return mul(rules, signal, rules.pointwise("sigmoid", torch.sigmoid, gate))


def power(rules: Rules, x: Any, exponent: Any) -> Tensor:
    """A power of the picture, or with the picture in the exponent."""
    if not depends(exponent):
        inverse = bool((torch.as_tensor(exponent) < 0).any())
        return rules.pointwise("reciprocal" if inverse else "pow", lambda x: x**exponent, x)
    if depends(x):
        raise NoRuleError("pow of two operands that depend on the picture")
    return rules.pointwise("exp", lambda exponent: x**exponent, exponent)


def maximum(rules: Rules, left: Tensor, right: Tensor) -> Tensor:
    """The larger of two, number by number."""
    return _extreme_of_two(rules, "max", left, right)


def minimum(rules: Rules, left: Tensor, right: Tensor) -> Tensor:
    """The smaller of two, number by number."""
    return _extreme_of_two(rules, "min", left, right)


def _extreme_of_two(rules: Rules, name: str, left: Tensor, right: Tensor) -> Tensor:
    choose = torch.maximum if name == "max" else torch.minimum
    if depends(left) and depends(right):
        pair = torch.stack(torch.broadcast_tensors(left, right), -1)
        return rules.selection(name, lambda pair: choose(pair[..., 0], pair[..., 1]), pair)
    x, constant = (left, right) if depends(left) else (right, left)
    # With a constant it is a function of one number: max(x, 0) is ReLU.
    return rules.pointwise(
        f"{name}imum", lambda x: choose(x, constant), x.expand(torch.broadcast_shapes(x.shape, constant.shape))
    )


def selection(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A choice among several numbers, called `name`."""

    def selection(rules: Rules, x: Tensor, *rest: Any, **settings: Any) -> Any:
        return rules.selection(name, lambda x: function(x, *rest, **settings), x)

    return selection


def selection_with_places(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A choice among several numbers, called `name`, and the places of those chosen."""

    def selection(rules: Rules, x: Tensor, *rest: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        values = rules.selection(name, lambda x: function(x, *rest, **settings)[0], x)
        return values, function(x.detach(), *rest, **settings)[1]

    return selection


def extreme(name: str, two: Callable[..., Tensor]) -> Callable[..., Any]:
    """`max` and `min`: of all numbers, of two tensors, or along an axis with the places."""

    def extreme(rules: Rules, x: Tensor, *rest: Any, **settings: Any) -> Any:
        if rest and isinstance(rest[0], Tensor):
            return two(rules, x, rest[0])
        if not rest and not settings:
            return rules.selection(name, lambda x: x.amax() if name == "max" else x.amin(), x)
        places = getattr(x, name)(*rest, **settings)
        values = rules.selection(name, lambda x: getattr(x, name)(*rest, **settings).values, x)
        return type(places)((values, places.indices))

    return extreme
