"""The rules of LRP for layers with weights, `z = sum_i x_i w_i + b`, one function each.

A rule says how the relevance of an output is shared among what was summed up to it. It is given the call and returns
the layer's exact output `y`, whose gradient is the rule: terms `L` that are linear in `x`, each with the ratio that the
relevance per output, `R / y`, is to be multiplied with on its way back.

    epsilon          R_i = x_i sum_j w_ij R_j / (z_j + eps sign z_j)                (Bach 2015)
    gamma            shares that have the output's sign count 1 + gamma             (Montavon 2019)
    alpha-beta       alpha times the positive shares less beta times the negative   (Bach 2015)
    z-plus           positive shares only                                           (Montavon 2017)
    z-box            x w - low w+ - high w-, for inputs between low and high        (Montavon 2017)
    w2, flat         shares by w^2, or equal shares, whatever the input             (Montavon 2017, Lapuschkin 2019)
    pass             each output's relevance goes to the input in its place
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xai_cli.operators.account import Account
from xai_cli.operators.rules import Weighted

# Denominators of all other rules are kept off zero by so much of their size.
_STABILISER = 1e-6


@dataclass(frozen=True)
class Pixels:
    """What goes along with the pixels until the first weights.

    Attributes:
        share: ones, whose gradient is the pixels' relevance.
        low, high: the smallest and largest value that each pixel can have.
    """

    share: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Surroundings:
    """What a rule needs beside the call: where losses are noted, the pixels if it is they that the layer sees, and the
    size of `eps` where a rule does not give its own.
    """

    account: Account
    pixels: Pixels | None
    epsilon: float


def epsilon(call: Weighted, around: Surroundings, eps: float | None = None) -> Tensor:
    """Shares by `x_i w_ij`, of which `eps` of the output's size is lost; with an `eps` of 0 this is LRP-0."""
    y, eps = call.value(), around.epsilon if eps is None else eps
    ratio = None if eps == 0 else _ratio(y, y, eps)
    return _ruled(call, around, y, _Term(y, ratio, call.bias))


def lrp_0(call: Weighted, around: Surroundings) -> Tensor:
    """Shares by `x_i w_ij`: the plain gradient."""
    return epsilon(call, around, 0.0)


def z_plus(call: Weighted, around: Surroundings) -> Tensor:
    """Shares by `(x_i w_ij)+`."""
    positive, bias = _positive_shares(call)
    return _divided(call, around, positive, positive.detach(), bias)


def gamma(call: Weighted, around: Surroundings, gamma: float = 0.25) -> Tensor:
    """Shares by `x_i w_ij`, of which those with the output's sign count `1 + gamma`."""
    weight, bias = call.weight, call.bias
    raised, raised_bias = _shares(
        call,
        weight + gamma * weight.clamp(min=0),
        weight + gamma * weight.clamp(max=0),
        None if bias is None else bias + gamma * bias.clamp(min=0),
    )
    y = call.value()
    with torch.no_grad():
        up = y > 0
        # What negative shares raise is (2 + gamma) y - raised: one more pass through the layer serves both signs.
        z = torch.where(up, raised, torch.sub((2 + gamma) * y, raised))
        margin = _margin(z, _STABILISER)
        ratio = y / z.add_(torch.where(up, margin, -margin))
        own, other = torch.where(up, 0, (2 + gamma) * ratio), torch.where(up, ratio, -ratio)
    # Behind a rectifier, nothing comes back to negative outputs.
    return _ruled(call, around, y, _Term(y, own, bias, may_rest=True), _Term(raised, other, raised_bias, margin))


def alpha_beta(call: Weighted, around: Surroundings, alpha: float = 2.0, beta: float = 1.0) -> Tensor:
    """`alpha` times the shares by `(x_i w_ij)+` less `beta` times those by `(x_i w_ij)-`."""
    # Not as y - positive: what is left of two near numbers would then be divided by.
    (positive, positive_bias), (negative, negative_bias) = _positive_shares(call), _negative_shares(call)
    with torch.no_grad():
        y, margins = call.value(), [_margin(positive, _STABILISER), -_margin(negative, _STABILISER)]
        up, down = alpha * y / (positive + margins[0]), -beta * y / (negative + margins[1])
    return _ruled(
        call,
        around,
        y,
        _Term(positive, up, positive_bias, margins[0]),
        _Term(negative, down, negative_bias, margins[1]),
    )


def z_box(call: Weighted, around: Surroundings) -> Tensor:
    """Shares by `x_i w_ij - low_i w_ij+ - high_i w_ij-`. Raises ValueError for a layer that does not see the pixels."""
    pixels = around.pixels
    if pixels is None:
        raise ValueError("the rule z-box needs the bounds of pixels, which only the first layer's input has")
    up, down = call.weight.clamp(min=0), call.weight.clamp(max=0)
    z = call.apply(pixels.share * call.x.detach(), call.weight, None)
    z = z - call.apply(pixels.share * pixels.low, up, None) - call.apply(pixels.share * pixels.high, down, None)
    return _divided(call, around, z, z.detach())


def w2(call: Weighted, around: Surroundings) -> Tensor:
    """Shares by `w_ij^2`, whatever the input."""
    z = call.apply(_share(call, around), call.weight.square(), None)
    return _divided(call, around, z, z.detach())


def flat(call: Weighted, around: Surroundings) -> Tensor:
    """Equal shares, whatever the input."""
    z = call.apply(_share(call, around), torch.ones_like(call.weight), None)
    return _divided(call, around, z, z.detach())


def unchanged(call: Weighted, around: Surroundings) -> Tensor:
    """All relevance to the input in the output's place. Raises ValueError if their shapes differ."""
    share = _share(call, around)
    with torch.no_grad():
        y = call.value()
    if share.shape != y.shape:
        raise ValueError(
            f"the rule pass needs a layer whose output has the shape of its input, found {tuple(share.shape[1:])} to "
            f"{tuple(y.shape[1:])}"
        )
    return _ruled(call, around, y, _Term(share, y, None))


@torch.no_grad()
def _margin(z: Tensor, eps: float) -> Tensor:
    """`eps` of the root mean square of `z`, for each row of the first axis its own; 1 where all of a row is zero."""
    axes = tuple(range(1, z.ndim))
    size = torch.linalg.vector_norm(z, dim=axes, keepdim=True) if axes else z.abs()
    return torch.where(size > 0, eps / z[:1].numel() ** 0.5 * size, 1)


@torch.no_grad()
def _ratio(y: Tensor, z: Tensor, eps: float) -> Tensor:
    """`y / z`, with `z` moved away from zero."""
    return y / (z + torch.copysign(_margin(z, eps), z))


def _positive_shares(call: Weighted) -> tuple[Tensor, Tensor | None]:
    """`sum_i (x_i w_ij)+ + b_j+`, and `b_j+`."""
    return _shares(call, call.weight.clamp(min=0), call.weight.clamp(max=0), _clamped(call.bias, min=0))


def _negative_shares(call: Weighted) -> tuple[Tensor, Tensor | None]:
    """`sum_i (x_i w_ij)- + b_j-`, and `b_j-`."""
    return _shares(call, call.weight.clamp(max=0), call.weight.clamp(min=0), _clamped(call.bias, max=0))


def _shares(
    call: Weighted, of_positive: Tensor, of_negative: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Positive inputs times one weight, negative ones times another."""
    if call.x.detach().amin() >= 0:  # after a rectifier: half the work
        return call.apply(call.x, of_positive, bias), bias
    negative = call.x.detach() < 0
    shares = call.apply(call.x.masked_fill(negative, 0), of_positive, bias)
    return shares + call.apply(call.x.masked_fill(~negative, 0), of_negative, None), bias


def _clamped(bias: Tensor | None, **bound: float) -> Tensor | None:
    return None if bias is None else bias.clamp(**bound)


def _share(call: Weighted, around: Surroundings) -> Tensor:
    """Ones in the shape of the input, whose gradient is the relevance of the input itself."""
    return _Ones.apply(around.account, call.x) if around.pixels is None else around.pixels.share


@dataclass(frozen=True)
class _Term:
    """A part of a rule: relevance per output times `ratio` goes into `linear`, whose constant part is `bias`.

    `margin` times all that goes into it is what the margin of the denominator keeps. One that `may_rest` often has
    nothing to pass on.
    """

    linear: Tensor
    ratio: Tensor | None
    bias: Tensor | None = None
    margin: Tensor | None = None
    may_rest: bool = False


def _divided(call: Weighted, around: Surroundings, linear: Tensor, z: Tensor, bias: Tensor | None = None) -> Tensor:
    """All relevance into `linear`, whose value `z` is never negative."""
    with torch.no_grad():
        y, margin = call.value(), _margin(z, _STABILISER)
        ratio = y / (z + margin)
    return _ruled(call, around, y, _Term(linear, ratio, bias, margin))


def _ruled(call: Weighted, around: Surroundings, y: Tensor, *terms: _Term) -> Tensor:
    return _Ruled.apply(around.account, call.channels, y.detach(), terms, *(term.linear for term in terms))


class _Ruled(torch.autograd.Function):
    """`y` going forward; going back, each term gets its share of what arrives, and the account what is kept."""

    @staticmethod
    def forward(
        ctx: Any, account: Account, channels: int, y: Tensor, terms: tuple[_Term, ...], *linears: Tensor
    ) -> Tensor:
        ctx.account, ctx.channels, ctx.count = account, channels, len(terms)
        ctx.biases, ctx.margins = [term.bias for term in terms], [term.margin for term in terms]
        ctx.may_rest = [term.may_rest for term in terms]
        # What margins keep need not be found by comparing.
        compared = (y, *linears) if ctx.margins == [None] else ()
        ctx.save_for_backward(*(term.ratio for term in terms), *compared)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,), saved = gradients, ctx.saved_tensors
        ratios, compared = saved[: ctx.count], saved[ctx.count :]
        parts = [gradient if ratio is None else gradient * ratio for ratio in ratios]
        totals = [part if ctx.channels == -1 else part.sum(tuple(range(ctx.channels + 1, 0))) for part in parts]
        for total, bias, margin in zip(totals, ctx.biases, ctx.margins, strict=True):
            if bias is not None:
                ctx.account.add("biases", total * bias)
            if margin is not None:
                ctx.account.add("rest", total * margin.reshape(-1, *[1] * (total.ndim - 1)))
        if compared:
            y, linear = compared
            ctx.account.add_inner("rest", gradient, y)
            ctx.account.add_inner("rest", parts[0], linear, -1)
        # A pass back through the layer is saved where there is nothing to take along.
        passed = (None if rests and not part.any() else part for part, rests in zip(parts, ctx.may_rest, strict=True))
        return None, None, None, None, *passed


class _Ones(torch.autograd.Function):
    """Ones going forward; going back, relevance becomes relevance per input, which an input of zero cannot take."""

    @staticmethod
    def forward(ctx: Any, account: Account, x: Tensor) -> Tensor:
        ctx.account = account
        ctx.save_for_backward(x)
        return torch.ones_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (relevance,), (x,) = gradients, ctx.saved_tensors
        ctx.account.add("rest", relevance.where(x == 0, 0))
        return None, torch.where(x == 0, 0, relevance / x)


RULES: dict[str, Callable[..., Tensor]] = {
    "epsilon": epsilon,
    "lrp-0": lrp_0,
    "gamma": gamma,
    "alpha-beta": alpha_beta,
    "z-plus": z_plus,
    "z-box": z_box,
    "w2": w2,
    "flat": flat,
    "pass": unchanged,
}
