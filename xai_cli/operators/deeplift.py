"""DeepLIFT as a rule set: every operator passes on what its change from a reference to the picture is made of.

    m = (change of the output) / (change of the input)

A first pass on the reference (the baseline picture) keeps the operands of each operator, in order; the pass on the
picture meets the same operators and takes their gradient for the multiplier m. The gradient of the score is then the
multiplier of the pixels, and sum m (x - x0) = f(x) - f(x0), exactly, unless the net jumps (comparisons, rounding):

    functions of one number   the slope of the secant (Rescale), or one slope for all that raised the weighted sum
                              before it and one for all that lowered it (RevealCancel)
    products                  each factor's change times the mean of the other
    quotients                 the product rule, solved for the factor
    norms                     said in squares, means, roots and a quotient
    softmax                   the exponential of its logarithm
    maxima                    as far as the larger end goes, at its own place; the rest at the place of the other

Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation Differences, 2017
(arXiv:1704.02685).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import truediv
from typing import Any

import torch
from torch import Tensor

from xai_cli.operators.rules import Rules, Weighted
from xai_cli.operators.secant import secant

Record = tuple[str, tuple[Tensor, ...]]


class Reference(Rules):
    """The plain operators, whose operands are kept on a tape; no graph grows beyond one operator.

    With `inputs_of_weights` also what goes into layers with weights is kept, which RevealCancel needs.
    """

    def __init__(self, *, inputs_of_weights: bool = False) -> None:
        self.tape: deque[Record] = deque()
        self.inputs_of_weights = inputs_of_weights

    def weighted(self, call: Weighted) -> Tensor:
        if self.inputs_of_weights:
            self._keep("weighted", call.x)
        return _cut(call.value)

    def pointwise(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self._keep(name, x)
        return _cut(apply, x)

    def product(self, apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        self._keep("product", left, right)
        return _cut(apply, left, right)

    def quotient(self, left: Tensor | float, right: Tensor) -> Tensor:
        self._keep("quotient", *_depending(left, right))
        return _cut(truediv, left, right)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        self._keep("softmax", x)
        return _cut(super().softmax, x, axis)

    def log_softmax(self, x: Tensor, axis: int) -> Tensor:
        self._keep("log_softmax", x)
        return _cut(super().log_softmax, x, axis)

    def normalise(self, x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
        self._keep("normalise", x)
        return _cut(lambda: truediv(*_rest_and_deviation(x, axes, eps, centred=centred)))

    def selection(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self._keep(name, x)
        return _cut(apply, x)

    def _keep(self, name: str, *operands: Tensor) -> None:
        self.tape.append((name, tuple(each.detach() for each in operands)))


class DeepLift(Rules):
    """The multipliers of each operator between the pass that `reference` has seen and this one.

    `functions` of one number were met, of which `revealed` came straight after weights, as RevealCancel wants them.

    Raises RuntimeError if the two passes call different operators.
    """

    def __init__(self, reference: Reference) -> None:
        self._tape = reference.tape  # emptied on the way
        self._reveal_cancel = reference.inputs_of_weights
        self.functions = self.revealed = 0

    def weighted(self, call: Weighted) -> Tensor:
        """Linear: its gradient is its multiplier."""
        y = call.value()
        if self._reveal_cancel:
            (start,) = self._start("weighted", call.x)
            y._weighted = call, start  # type: ignore[attr-defined]  # a note of ours on the tensor
        return y

    def pointwise(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """By RevealCancel what stands directly behind weights, by Rescale the rest."""
        (start,) = self._start(name, x)
        self.functions += 1
        if hasattr(x, "_weighted"):
            self.revealed += 1
            return _reveal_cancel(name, apply, x, start, *x._weighted)
        return _rescale(name, apply, x, start)

    def product(self, apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        return _product(apply, left, right, *self._start("product", left, right))

    def quotient(self, left: Tensor | float, right: Tensor) -> Tensor:
        *left_start, right_start = self._start("quotient", *_depending(left, right))
        return _quotient(left, right, left_start[0] if left_start else left, right_start)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        (start,) = self._start("softmax", x)
        return _softmax(x, start, axis)

    def log_softmax(self, x: Tensor, axis: int) -> Tensor:
        (start,) = self._start("log_softmax", x)
        return _log_softmax(x, start, axis)

    def normalise(self, x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
        """A quotient by the root of a mean of squares."""
        (start,) = self._start("normalise", x)
        rest_start, deviation_start = _rest_and_deviation(start, axes, eps, centred=centred)
        rest = x - x.mean(axes, keepdim=True) if centred else x
        variance = _rescale("square", torch.square, rest, rest_start).mean(axes, keepdim=True) + eps
        deviation = _rescale("sqrt", torch.sqrt, variance, deviation_start.square())
        return _quotient(rest, deviation, rest_start, deviation_start)

    def selection(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        (start,) = self._start(name, x)
        return _Selection.apply(torch.minimum if name in ("min", "amin") else torch.maximum, apply, x, start)

    def finish(self) -> None:
        """Raises RuntimeError if the reference pass went on where the other one ended."""
        if self._tape:
            raise _other_way(self._tape[0], None)

    def _start(self, name: str, *operands: Tensor) -> tuple[Tensor, ...]:
        """The operands of the same call in the reference pass."""
        kept = self._tape.popleft() if self._tape else None
        if kept is None or kept[0] != name or _shapes(kept[1]) != _shapes(operands):
            raise _other_way(kept, (name, operands))
        return kept[1]


def _cut(function: Callable[..., Tensor], *operands: Any, **settings: Any) -> Tensor:
    """The value, without its past."""
    with torch.no_grad():
        return function(*operands, **settings).detach().requires_grad_()


def _rest_and_deviation(x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> tuple[Tensor, Tensor]:
    rest = x - x.mean(axes, keepdim=True) if centred else x
    return rest, (rest.square().mean(axes, keepdim=True) + eps).sqrt()


def _depending(*operands: Tensor | float) -> list[Tensor]:
    return [each for each in operands if isinstance(each, Tensor) and each.requires_grad]


def _shapes(operands: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in operands]


def _other_way(kept: Record | None, met: Record | None) -> RuntimeError:
    told = ["nothing" if each is None else f"{each[0]} of {_shapes(each[1])}" for each in (kept, met)]
    return RuntimeError(
        f"the model should call the same operators on the baseline and on the picture, found {told[0]} and {told[1]}; "
        "take another baseline, or a method without one (saliency, lrp)"
    )


def _rescale(name: str, apply: Callable[[Tensor], Tensor], x: Tensor, start: Tensor) -> Tensor:
    y, slope = secant(apply, x.detach(), start, name)
    return _Ruled.apply(x, y, slope)


def _product(
    apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, left_start: Tensor, right_start: Tensor
) -> Tensor:
    with torch.no_grad():
        value = apply(left, right)
        means = [each.lerp(start, 0.5) for each, start in ((left, left_start), (right, right_start))]
    return _Ruled.apply(apply(_Ruled.apply(left, means[0], None), _Ruled.apply(right, means[1], None)), value, None)


def _quotient(left: Tensor | float, right: Tensor, left_start: Tensor | float, right_start: Tensor) -> Tensor:
    """The product rule of `left = y right`: stable where one of the divisors is tiny, as a reciprocal would not be."""
    with torch.no_grad():
        y, y_start = left / right, left_start / right_start
        middle, divisor = y.lerp(y_start, 0.5), right.lerp(right_start, 0.5)
    return _Ruled.apply((left - middle * right) / divisor, y, None)


def _softmax(x: Tensor, start: Tensor, axis: int) -> Tensor:
    """The exponential of its logarithm: exponentials and their sum taken one by one would cancel beyond float32."""
    logs = _log_softmax(x, start, axis)
    _, slope = secant(torch.exp, logs.detach(), start.log_softmax(axis))
    return _Ruled.apply(logs, x.softmax(axis).detach(), slope)


def _log_softmax(x: Tensor, start: Tensor, axis: int) -> Tensor:
    """`x - log sum exp x`.

    The logarithm's change is the change of `x` averaged by weights between the two softmaxes: it is convex, so some mix
    of its gradients at both ends fits exactly.
    """
    with torch.no_grad():
        logs, logs_start = x.log_softmax(axis), start.log_softmax(axis)
        step = (logs - logs_start).nan_to_num_(0.0, 0.0, 0.0)  # masked in both
        ahead, back = ((each.exp() * step).sum(axis, keepdim=True) for each in (logs, logs_start))
        mix = (-back / (ahead - back + torch.finfo(x.dtype).tiny)).clamp_(0, 1)
        weights = torch.lerp(logs_start.exp(), logs.exp(), mix)
    return _Ruled.apply(x - (weights * x).sum(axis, keepdim=True), logs, None)


def _reveal_cancel(
    name: str, apply: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, call: Weighted, call_start: Tensor
) -> Tensor:
    """The function of a weighted sum, with a multiplier for what raised the sum and one for what lowered it.

    Each is the mean of its slopes when it comes first and when it comes second (section 3.4 of the paper).
    """
    change = call.x.detach() - call_start
    rises, falls = (torch.heaviside(each, each.new_tensor(0.5)) for each in (change, -change))
    changed = _Ruled.apply(call.x, change, None)
    up, down = call.weight.clamp(min=0), call.weight.clamp(max=0)
    raised = call.apply(changed * rises, up, None) + call.apply(changed * falls, down, None)
    lowered = call.apply(changed * rises, down, None) + call.apply(changed * falls, up, None)
    total = torch.zeros_like(raised)
    for part, other in ((raised, lowered), (lowered, raised)):
        middle = start + other.detach()
        slopes = [secant(apply, place + part.detach(), place, name)[1] for place in (start, middle)]
        total = total + part * (slopes[0] + slopes[1]) / 2
    return _Ruled.apply(total, apply(x.detach()), None)


class _Ruled(torch.autograd.Function):
    """`y` going forward; going back, the gradient times `slope`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        ctx.save_for_backward(slope)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (slope,) = ctx.saved_tensors
        return gradients[0] if slope is None else gradients[0] * slope, None, None


class _Selection(torch.autograd.Function):
    """The extreme going forward; going back, its change lies at the places of the two extremes."""

    @staticmethod
    def forward(
        ctx: Any, further: Callable[..., Tensor], apply: Callable[[Tensor], Tensor], x: Tensor, start: Tensor
    ) -> Tensor:
        ctx.further, ctx.function = further, apply
        ctx.save_for_backward(x, start)
        return apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, start = ctx.saved_tensors
        with torch.enable_grad():
            ends = [each.detach().requires_grad_() for each in (x, start)]
            y, y_start = (ctx.function(each) for each in ends)
        far = ctx.further(y, y_start)
        shares = [gradients[0] * (far - y_start), gradients[0] * (y - far)]
        change = sum(torch.autograd.grad([y, y_start], ends, shares))
        return None, None, torch.where(x == start, 0, change / (x - start)), None
