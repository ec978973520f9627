"""Batch norm in eval mode is an affine map per channel: folded into the convolution or linear layer that feeds it.

    w' = w * s,   b' = (b - mean) * s + beta,   s = gamma / sqrt(var + eps)

Which layer feeds which norm is found by watching one forward pass, operator by operator, so every layout works: module
order says nothing (pre-activation nets, DenseNet), the tensors do.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from xai_cli.operators.rules import tensors_in

_PRODUCERS = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Reading these says nothing of a tensor's values; reading `.data` or `.mT` hands them on.
_FACTS = {"shape", "ndim", "dtype", "device", "requires_grad", "layout", "is_cuda", "is_cpu", "is_mps", "names"}


def accelerated(
    module: nn.Module, probes: Sequence[Tensor], scores: Callable[[Any], Tensor]
) -> tuple[nn.Module, dict[str, str]]:
    """A copy with batch norm folded and, for convolutional nets, channels last, and what was folded into what.

    `scores` takes the scores out of what the module returns. The copy is given back only if they equal the module's on
    each of the `probes` `(1, C, h, w)`, to 1e-4 of the largest; else the module itself, and nothing folded.
    """
    try:
        fast = copy.deepcopy(module)
        folded = fold_batch_norm(fast, probes[0])
        kernels = [parameter.ndim for parameter in fast.parameters() if parameter.ndim > 1]
        if kernels.count(4) > len(kernels) / 2:
            fast = fast.to(memory_format=torch.channels_last)
        with torch.no_grad():
            same = all(_same(scores(fast(probe)), scores(module(probe))) for probe in probes)
    except Exception:  # noqa: BLE001  # a net may read what folding removes; it runs as it is, only slower
        return module, {}
    return (fast, folded) if same else (module, {})


def _same(logits: Tensor, expected: Tensor) -> bool:
    # Constant logits would agree with anything: they prove nothing.
    return bool(expected.abs().max() > 0 and (logits - expected).abs().max() <= 1e-4 * expected.abs().max())


def fold_batch_norm(module: nn.Module, example: Tensor) -> dict[str, str]:
    """Folds what can be folded, in place, and returns `{layer: name of the batch norm whose output it now gives}`.

    A norm is folded if its input is the output of one convolution or linear layer that feeds nothing else, and if both
    are used once. The module must be in eval mode; `example` `(B, C, h, w)` is run once. What a net does with numbers
    read off its tensors cannot be watched, so compare the outputs afterwards.
    """
    names = {layer: name for name, layer in module.named_modules()}
    owners = _owners(module)
    norms = {id(layer.running_mean): layer for layer in names if isinstance(layer, _BatchNorm)}
    with torch.no_grad(), _Watch() as watch:
        module(example)
    folded: dict[nn.Module, nn.Module] = {}
    for norm_input, running_mean in watch.norms:
        norm, (weight, bias) = norms.get(id(running_mean)), watch.producers.get(id(norm_input), (None, None))
        producer = owners.get(id(weight))
        if norm is None or weight is None or producer is None or bias is not producer.bias:
            continue
        used = [norm_input, weight, running_mean, *([] if bias is None else [bias])]
        # A linear layer over tokens (B, N, C) has its channels last, the norm looks at axis 1.
        if any(watch.uses[id(tensor)] != 1 for tensor in used) or (weight.ndim == 2 and norm_input.ndim != 2):
            continue
        _fold(producer, norm)
        folded[norm] = producer
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if layer in folded:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, _without_norm(layer))
    return {names[producer]: names[norm] for norm, producer in folded.items()}


def _owners(module: nn.Module) -> dict[int, nn.Module]:
    """The layer of each `weight` by the tensor's id; a weight that two layers share belongs to none."""
    weighted = [layer for layer in module.modules() if isinstance(getattr(layer, "weight", None), Tensor)]
    weights = Counter(id(layer.weight) for layer in weighted)
    return {
        id(layer.weight): layer for layer in weighted if isinstance(layer, _LAYERS) and weights[id(layer.weight)] == 1
    }


class _Watch(TorchFunctionMode):
    """Notes who makes each tensor and how often each is used; keeps them alive so that an `id` stays one tensor's."""

    def __init__(self) -> None:
        super().__init__()
        self.producers: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.norms: list[tuple[Tensor, Tensor]] = []
        self.uses: Counter[int] = Counter()
        self.alive: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if _is_fact(function):
            return output
        for tensor in tensors_in((args, kwargs)):
            self.uses[id(tensor)] += 1
            self.alive.append(tensor)
        if isinstance(output, Tensor):
            self.alive.append(output)
        if function in _PRODUCERS:
            self.producers[id(output)] = _argument(args, kwargs, 1, "weight"), _argument(args, kwargs, 2, "bias")
        if function is F.batch_norm and not _argument(args, kwargs, 5, "training"):
            self.norms.append((args[0], _argument(args, kwargs, 1, "running_mean")))
        return output


def _is_fact(function: Callable[..., Any]) -> bool:
    """Reading `x.shape` is a call like any other here, but uses nothing of the tensor's values."""
    if getattr(function, "__name__", "") == "__get__":
        return function.__self__.__name__ in _FACTS  # type: ignore[attr-defined]  # a property's descriptor
    return getattr(function, "__name__", "") in ("size", "dim", "stride", "is_contiguous", "numel")


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


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


def _without_norm(norm: nn.Module) -> nn.Module:
    """What a folded norm leaves behind: nothing, or the activation that timm's norm layers carry."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
