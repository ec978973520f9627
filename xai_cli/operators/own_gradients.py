"""What one call makes of its parameters, for each picture of the batch: given what went in and what came back.

For linear layers, convolutions, norms and pointwise operators there is a formula; for all else the call is run again on
the rows of one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor

# The places of the arguments that a formula needs.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_RUNNING = ("input", "running_mean", "running_var", "weight", "bias")
_FORMULAS: Mapping[Callable[..., Any], tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias"),
    F.rms_norm: ("input", "normalized_shape", "weight"),
    F.group_norm: ("input", "num_groups", "weight", "bias"),
    F.instance_norm: _RUNNING,
    F.batch_norm: (*_RUNNING, "training"),
}
_POINTWISE = {"add", "sub", "rsub", "mul", "div", "rdiv", "where", "addcmul", "lerp", "pow"}
# A matrix that has as many rows as there are pictures is no row of each.
_PRODUCTS = {"matmul", "mm", "bmm", "mv", "addmm", "einsum", "linear", "rmatmul", "bilinear", "tensordot"}


class Mixed(RuntimeError):  # noqa: N818  # it is what a model does, not what went wrong
    """A call does not keep the pictures of a batch apart along its first axis, or cannot be followed."""


@dataclass(frozen=True)
class Whole:
    """The gradients `(b, *shape)` of a tensor, of pictures from `first` on."""

    tensor: Tensor
    first: int
    gradients: Tensor


@dataclass(frozen=True)
class Factors:
    """Of each picture the gradient of `tensor` is `outputs^T inputs`, from `(B, T, I)` and `(B, T, O)`."""

    tensor: Tensor
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Call:
    """One call that mixes the pictures with parameters, as it was made.

    Attributes:
        made: what it uses that is made of parameters alone, by `id`.
        rows: how many pictures the first axis of its result holds, one after another.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: dict[int, Tensor]
    rows: int
    in_place: bool

    def repeated(self, replace: Callable[[Tensor], Tensor | None]) -> Any:
        """Its result with every tensor replaced."""
        args, kwargs = _replaced(self.args, replace), _replaced(self.kwargs, replace)
        if self.in_place:
            args = (args[0].clone(), *args[1:])
        out = self.function(*args, **kwargs)
        return args[0] if self.in_place else out

    def arguments(self) -> dict[str, Any] | None:
        """The arguments of a formula by name, where it holds: weight and bias alone are made of parameters."""
        names = _FORMULAS.get(self.function)
        if names is None:
            return None
        found = dict.fromkeys(names) | dict(zip(names, self.args, strict=False)) | self.kwargs
        acting = {id(found[name]) for name in ("weight", "bias") if name in found}
        apart = found["weight"] is None or found["weight"] is not found.get("bias")
        return found if apart and self.made.keys() <= acting - {id(found["input"])} else None

    def mixed(self) -> Mixed:
        """That it does not keep the pictures apart."""
        return Mixed(f"{self.name} does not keep the pictures apart along its first axis")


def own_gradients(call: Call, gradient: Tensor, *, compare: bool = False) -> Iterator[Whole | Factors]:
    """Of all that is made of parameters in the call, each picture's own gradient, from that of the call's result.

    Raises:
        Mixed: the pictures are not apart; where a call is run again, `compare` looks also at what it makes of them.
    """
    found = call.arguments()
    if found is None:
        rows_of_own = any(tensor.ndim == gradient.ndim and len(tensor) > 1 for tensor in call.made.values())
        if call.name in _POINTWISE and not rows_of_own:
            return _pointwise(call, gradient)
        return _again(call, gradient, compare)
    if call.function is F.linear:
        own = _linear(call, found, gradient)
    elif "stride" in found:
        own = _convolution(call, found, gradient)
    else:
        own = _norm(call, found, gradient)
    return (each for each in own if id(each.tensor) in call.made)


def _linear(call: Call, found: dict[str, Any], gradient: Tensor) -> Iterator[Whole | Factors]:
    inputs, outputs = (each.reshape(call.rows, -1, each.shape[-1]) for each in (found["input"].detach(), gradient))
    yield Factors(found["weight"], inputs, outputs)
    yield Whole(found["bias"], 0, outputs.sum(1))


def _convolution(call: Call, found: dict[str, Any], gradient: Tensor) -> Iterator[Whole | Factors]:
    x, weight, groups = found["input"].detach(), found["weight"].detach(), found["groups"] or 1
    axes = weight.ndim - 2
    if x.ndim != weight.ndim:
        raise Mixed("a convolution of one picture without an axis of pictures")
    strides, steps = _each(found["stride"] or 1, axes), _each(found["dilation"] or 1, axes)
    paddings = _paddings(found["padding"] or 0, weight, steps)
    yield Whole(found["bias"], 0, _sums(call, gradient))
    if id(found["weight"]) not in call.made:
        return
    if weight[0, 0].numel() == groups == 1 and {*strides} == {1} and {*paddings} == {0}:
        places = (each.unflatten(0, (call.rows, -1)).movedim(2, -1).flatten(1, -2) for each in (x, gradient))
        yield Factors(found["weight"], *places)
        return
    for n, (mine, back) in enumerate(zip(x.chunk(call.rows), gradient.chunk(call.rows), strict=True)):
        _, kernel, _ = torch.ops.aten.convolution_backward(
            back, mine, weight, None, strides, paddings, steps, False, [0] * axes, groups, (False, True, False)
        )
        yield Whole(found["weight"], n, kernel[None])


def _norm(call: Call, found: dict[str, Any], gradient: Tensor) -> Iterator[Whole]:
    """Scale and shift, from what the norm makes of the picture without them."""
    if found.get("training"):
        raise Mixed("batch_norm in training mode sees all pictures of a batch")
    weight: Tensor | None = found["weight"]
    bias: Any = found.get("bias")
    trailing = len(found.get("normalized_shape") or ())
    if weight is not None:
        plain = call.repeated(lambda tensor: None if tensor is weight or tensor is bias else tensor.detach())
        yield Whole(weight, 0, _sums(call, gradient * plain, trailing))
    yield Whole(bias, 0, _sums(call, gradient, trailing))


def _sums(call: Call, values: Tensor, trailing: int = 0) -> Tensor:
    """Of each picture the sums over all but the channels, or but the `trailing` axes."""
    values = values.unflatten(0, (call.rows, -1))
    return values.sum(tuple(range(1, values.ndim - trailing)) if trailing else (1, *range(3, values.ndim)))


def _pointwise(call: Call, gradient: Tensor) -> Iterator[Whole]:
    """By giving every row a copy of the parameter."""
    own: dict[int, Tensor] = {}
    for key, tensor in call.made.items():
        shape = (1,) * (gradient.ndim - tensor.ndim) + tensor.shape
        own[key] = tensor.detach().reshape(shape).expand(len(gradient), *shape[1:]).requires_grad_()
    with torch.enable_grad():
        out = call.repeated(lambda tensor: own.get(id(tensor), tensor.detach()))
    if out.shape != gradient.shape:
        raise call.mixed()
    found = torch.autograd.grad(out, list(own.values()), gradient)
    for tensor, each in zip(call.made.values(), found, strict=True):
        yield Whole(tensor, 0, each.unflatten(0, (call.rows, -1)).sum(1).reshape(call.rows, *tensor.shape))


def _again(call: Call, gradient: Tensor, compare: bool) -> Iterator[Whole]:
    whole = call.repeated(Tensor.detach).chunk(call.rows) if compare else ()
    for n, back in enumerate(gradient.chunk(call.rows)):
        out, own = _alone(call, n, gradient)
        if whole and not torch.allclose(out, whole[n], rtol=1e-3, atol=1e-3 * float(whole[n].abs().max())):
            raise Mixed(f"{call.name} makes something else of a picture alone")
        found = torch.autograd.grad(out, list(own.values()), back, allow_unused=True, materialize_grads=True)
        for key, each in zip(own, found, strict=True):
            yield Whole(call.made[key], n, each[None])


def _alone(call: Call, n: int, result: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The call on the rows of picture `n`, and what takes the places of `made` in it.

    Whether a tensor that does not move with the picture has rows of each is tried both ways, the likelier one first:
    the other gives a result of another shape.
    """
    for cut in (False, True) if call.name in _PRODUCTS else (True, False):
        own: dict[int, Tensor] = {}

        def mine(tensor: Tensor, cut: bool = cut, own: dict[int, Tensor] = own) -> Tensor:
            made, moving = id(tensor) in call.made, tensor.requires_grad
            alike = tensor.ndim == result.ndim and len(tensor) == len(result)
            tensor = own.setdefault(id(tensor), tensor.detach().requires_grad_()) if made else tensor.detach()
            return tensor.chunk(call.rows)[n] if (moving and not made) or (alike and cut) else tensor

        with suppress(RuntimeError, IndexError), torch.enable_grad():
            out = call.repeated(mine)
            if out.shape == (len(result) // call.rows, *result.shape[1:]):
                return out, own
    raise call.mixed()


def _replaced(value: Any, replace: Callable[[Tensor], Tensor | None]) -> Any:
    """The same with every tensor in it replaced."""
    if isinstance(value, Tensor):
        return replace(value)
    if type(value) is dict:
        return {key: _replaced(each, replace) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_replaced(each, replace) for each in value)
    return value


def _each(value: Any, axes: int) -> list[Any]:
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    return list(numbers * axes if len(numbers) == 1 else numbers)


def _paddings(padding: Any, weight: Tensor, steps: list[int]) -> list[int]:
    if padding == "same":
        widths = [step * (size - 1) for step, size in zip(steps, weight.shape[2:], strict=True)]
        if any(width % 2 for width in widths):
            raise Mixed("a convolution pads more on one side than on the other")
        return [width // 2 for width in widths]
    return _each(0 if padding == "valid" else padding, len(steps))
