"""Layer-wise relevance propagation as a rule set.

Relevance is carried per number, `g = R / y`, so that it is the gradient of a function that is linear around the
picture: functions of one number count with their slope from zero, norms with their deviation held fast, of a product
the gate is held fast (or each factor gets half), softmax by its Taylor expansion. The sum of a layer with weights
follows the layer's rule.

Bach et al. 2015 (10.1371/journal.pone.0130140); Montavon et al. 2019 (10.1007/978-3-030-28954-6_10); AttnLRP:
Achtibat et al. 2024 (arXiv:2402.05602); CP-LRP: Ali et al. 2022 (arXiv:2202.07304).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.operators.account import Account, constant
from xai_cli.operators.composites import Composite
from xai_cli.operators.mode import calling_layer
from xai_cli.operators.rules import Rules, Weighted
from xai_cli.operators.secant import secant
from xai_cli.operators.weighted_rules import RULES, Pixels, Surroundings

# The plain gradient of these is their slope from zero already.
_HOMOGENEOUS = {"relu", "leaky_relu", "prelu", "rrelu", "abs"}
# Their results switch or scale a signal, and carry none themselves.
_GATES = {"sigmoid", "hardsigmoid"}
_SCALES = {"rsqrt", "reciprocal", "log", "log2", "log10"}
# They keep order, so that the bounds of pixels stay their bounds.
_CUTS = {"clamp", "clamp_min", "clamp_max", "hardtanh"}


class Lrp(Rules):
    """Relevance by `composite`; what does not reach the pixels is noted in `account`.

    `met_pixels` tells whether some layer with weights saw nothing but pixels.
    """

    def __init__(self, module: nn.Module, composite: Composite, account: Account) -> None:
        self.composite, self.account = composite, account
        self._names = {layer: name for name, layer in module.named_modules()}
        self.met_pixels = False

    def weighted(self, call: Weighted) -> Tensor:
        pixels = getattr(call.x, "_pixels", None)
        # Finding out who calls takes a while, and is for composites that ask.
        layer = calling_layer(self._names) if self.composite.named else ""
        self.met_pixels |= pixels is not None
        rule = self.composite.rule(call.kind, layer, first=pixels is not None)
        around = Surroundings(self.account, pixels, self.composite.epsilon)
        return RULES[rule.name](call, around, *rule.parameters)

    def pointwise(self, name: str, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if name in _HOMOGENEOUS:
            return apply(x)
        if name in _SCALES:
            return _gate(apply(x.detach()))
        y, slope = secant(apply, x.detach(), torch.zeros_like(x))
        y = _Linearised.apply(self.account, y, slope, x)
        if name in _CUTS:
            self.rescaled(apply, x, y)
        return _gate(y) if name in _GATES else y

    def product(self, apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        if self.composite.products == "gate":
            gates = [getattr(each, "_gate", False) for each in (left, right)]
            if gates[0] == gates[1] and left.numel() != right.numel() and apply is torch.mul:
                gates = [left.numel() < right.numel(), left.numel() > right.numel()]
            if gates[0] != gates[1]:
                return apply(left.detach(), right) if gates[0] else apply(left, right.detach())
        return apply(_Half.apply(left), _Half.apply(right))

    def quotient(self, left: Tensor | float, right: Tensor) -> Tensor:
        return left / right.detach()

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        return _gate(_Softmax.apply(self.account, x, axis))

    def log_softmax(self, x: Tensor, axis: int) -> Tensor:
        # The scores themselves are explained; what they are compared with is held fast.
        return x - constant(self.account, "softmax", x.detach().logsumexp(axis, keepdim=True).expand(x.shape))

    def normalise(self, x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
        rest = x - x.mean(axes, keepdim=True) if centred else x
        return rest * (rest.detach().square().mean(axes, keepdim=True) + eps).rsqrt()

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = x * scale + constant(self.account, "biases", shift.expand(x.shape))
        self.rescaled(lambda x: x * scale + shift, x, y)
        return y

    def constant(self, value: Tensor) -> Tensor:
        return constant(self.account, "tokens", value)

    def passed(self, apply: Callable[..., Any], x: Tensor, out: Any) -> None:
        pixels: Pixels | None = getattr(x, "_pixels", None)
        parts = _parts(out)
        if getattr(x, "_gate", False):
            for part in parts:
                _gate(part)
        if pixels is not None:
            ends = [apply(each) for each in (pixels.share, pixels.low, pixels.high)]
            for part, *of_part in zip(parts, *map(_parts, ends), strict=True):
                part._pixels = Pixels(*of_part)

    def joined(self, apply: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[Tensor], out: Tensor) -> None:
        pixels: list[Pixels | None] = [getattr(part, "_pixels", None) for part in parts]
        # A part that is no picture would make the first layer more than that.
        if all(own is not None or not part.requires_grad for own, part in zip(pixels, parts, strict=True)):
            ends = [own or Pixels(torch.zeros_like(part), part, part) for own, part in zip(pixels, parts, strict=True)]
            out._pixels = Pixels(*(apply([getattr(end, name) for end in ends]) for name in ("share", "low", "high")))  # type: ignore[attr-defined]

    def rescaled(self, apply: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> None:
        pixels: Pixels | None = getattr(x, "_pixels", None)
        if pixels is not None and out.shape == x.shape:
            ends = apply(pixels.low), apply(pixels.high)
            # A negative factor turns the bounds round; relevance stays where it is.
            out._pixels = Pixels(pixels.share, torch.minimum(*ends), torch.maximum(*ends))  # type: ignore[attr-defined]
        if getattr(x, "_gate", False):
            _gate(out)


def with_pixels(inputs: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ones in the shape of `inputs`, whose gradient will be the pixels' relevance, and the inputs to run the model on.

    `low` and `high` `(1, C, h, w)` are the smallest and largest value that each pixel can have.
    """
    share = torch.ones_like(inputs, requires_grad=True)
    scaled = inputs * share
    scaled._seen = scaled.grad_fn  # type: ignore[attr-defined]  # it is of our making
    scaled._pixels = Pixels(share, low.to(inputs).expand_as(inputs), high.to(inputs).expand_as(inputs))  # type: ignore[attr-defined]
    return share, scaled


def _parts(out: Any) -> Sequence[Any]:
    return out if isinstance(out, tuple | list) else [out]


def _gate(tensor: Tensor) -> Tensor:
    tensor._gate = True  # type: ignore[attr-defined]
    return tensor


class _Linearised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, account: Account, y: Tensor, slope: Tensor, x: Tensor) -> Tensor:
        ctx.account = account
        ctx.save_for_backward(slope, x, y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        slope, x, y = ctx.saved_tensors
        ctx.account.add("rest", gradient * (y - slope * x))
        return None, None, None, gradient * slope


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / 2


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, account: Account, x: Tensor, axis: int) -> Tensor:
        s = x.softmax(axis)
        ctx.account, ctx.axis = account, axis
        ctx.save_for_backward(x, s)
        return s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, s = ctx.saved_tensors
        relevance = gradients[0] * s
        g = relevance - s * relevance.sum(ctx.axis, keepdim=True)
        ctx.account.add("softmax", relevance - torch.nan_to_num(x * g, 0.0, 0.0, 0.0))
        return None, g, None
