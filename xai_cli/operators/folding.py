"""Batch norm in eval mode is an affine map per channel: folded into the convolution or linear layer that feeds it.

    w' = w * s,   b' = (b - mean) * s + beta,   s = gamma / sqrt(var + eps)

Which layer feeds which norm is found by watching one forward pass, operator by operator, so every layout works: module
order says nothing (pre-activation nets, DenseNet), the tensors do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_PRODUCERS = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)


def fold_batch_norm(module: nn.Module, example: Tensor) -> int:
    """Folds what can be folded, in place, and returns how many batch norms are gone; outputs stay the same.

    A norm is folded if its input is the output of one convolution or linear layer that feeds nothing else, and if both
    are used once. The module must be in eval mode; `example` `(B, C, h, w)` is run once.
    """
    owners = {id(parameter): layer for layer in module.modules() for parameter in layer.parameters(recurse=False)}
    norms = {id(layer.running_mean): layer for layer in module.modules() if isinstance(layer, _BatchNorm)}
    with torch.no_grad(), _Watch() as watch:
        module(example)
    replacements: dict[nn.Module, nn.Module] = {}
    for call in watch.norms:
        norm, weight = norms.get(id(call.running_mean)), watch.producers.get(id(call.input))
        producer = owners.get(id(weight))
        if weight is not getattr(producer, "weight", None) or norm is None or weight is None:
            continue
        used_once = all(watch.uses[id(tensor)] == 1 for tensor in (call.input, weight, call.running_mean))
        # A linear layer over tokens (B, N, C) has its channels last, the norm looks at axis 1.
        if not used_once or (weight.ndim == 2 and call.input.ndim != 2):
            continue
        assert producer is not None
        _fold(producer, norm)
        replacements[norm] = _without_norm(norm)
    for layer in list(module.modules()):
        for name, child in layer.named_children():
            if child in replacements:
                setattr(layer, name, replacements[child])
    return len(replacements)


@dataclass(frozen=True)
class _NormCall:
    input: Tensor
    running_mean: Tensor


class _Watch(TorchFunctionMode):
    """Notes who makes each tensor and how often each is used; keeps them alive so that an `id` stays one tensor's."""

    def __init__(self) -> None:
        super().__init__()
        self.producers: dict[int, Tensor] = {}
        self.norms: list[_NormCall] = []
        self.uses: Counter[int] = Counter()
        self.alive: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if _is_property(function):
            return output
        for tensor in _tensors((args, kwargs)):
            self.uses[id(tensor)] += 1
            self.alive.append(tensor)
        if isinstance(output, Tensor):
            self.alive.append(output)
        if function in _PRODUCERS:
            self.producers[id(output)] = args[1] if len(args) > 1 else kwargs["weight"]
        if function is F.batch_norm and not _argument(args, kwargs, 5, "training", False):
            self.norms.append(_NormCall(args[0], _argument(args, kwargs, 1, "running_mean", None)))
        return output


def _is_property(function: Callable[..., Any]) -> bool:
    """Reading `x.shape` or `x.dtype` is a call like any other here, but uses nothing of the tensor's values."""
    return getattr(function, "__name__", "") in ("__get__", "size", "dim", "stride", "is_contiguous", "numel")


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


@torch.no_grad()
def _fold(producer: nn.Module, norm: _BatchNorm) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    assert isinstance(producer.weight, Tensor)
    # In double precision, so that the folded net differs by rounding the weights once and no more.
    scale = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if isinstance(producer.bias, Tensor):
        shift = shift + producer.bias.double() * scale
    weight = producer.weight.double() * scale.reshape(-1, *[1] * (producer.weight.ndim - 1))
    producer.weight = nn.Parameter(weight.to(producer.weight.dtype), requires_grad=False)
    producer.bias = nn.Parameter(shift.to(producer.weight.dtype), requires_grad=False)


def _without_norm(norm: _BatchNorm) -> nn.Module:
    """What a folded norm leaves behind: nothing, or the activation that timm's norm layers carry."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
