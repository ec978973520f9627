"""Layers that keep a grid of positions: which there are, which one a class activation map looks at, how it is read.

An activation is read as `(B, K, H, W)` whatever its layout: channels first, channels last (Swin), or tokens `(B, N, K)`
with prefix tokens (class, distillation, registers) before the patches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xai_cli.sentences import unknown

Layout = Literal["channels-first", "channels-last", "tokens"]
_MAX_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class FeatureLayer:
    """A layer with a grid of `height` x `width` positions, and where its activation keeps them."""

    name: str
    layout: Layout
    height: int
    width: int
    prefix: int = 0

    def grid(self, activation: Tensor) -> Tensor:
        """The activation, or its gradient, as `(B, K, H, W)`, at least float32, without the prefix tokens."""
        if self.layout == "channels-last":
            activation = activation.permute(0, 3, 1, 2)
        elif self.layout == "tokens":
            patches = activation[:, self.prefix :].transpose(1, 2)
            activation = patches.unflatten(2, (self.height, self.width))
        return at_least_float32(activation)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def captured(module: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """While open, a forward pass fills the dict with the named layers' outputs, in the graph, each able to take a
    gradient.

    The graph begins at the first of them when nothing before it needs a gradient, so that a backward pass goes no
    deeper.
    Raises LookupError for a name that is no layer. Nothing is left on the module.
    """
    modules = dict(module.named_modules())
    for name in names:
        if name not in modules or name == "":
            raise LookupError(unknown("layer", name, filter(None, modules)))
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> Any:
        tensor = _first_tensor(output)
        if tensor is None:
            return output
        outputs[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        # What follows gets a copy: an in-place operation there must not change what was kept.
        return _with_first_tensor(output, outputs[name].clone())

    handles = [
        modules[name].register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def find_feature_layer(module: nn.Module, example: Tensor, name: str | None = None) -> FeatureLayer:
    """The layer called `name`, or else the last one before the head whose every position still reaches the scores.

    `example` `(B, C, h, w)` is run once, forward and backward. Raises LookupError if no layer has that name or none
    qualifies, ValueError if the named layer has no spatial extent.
    """
    if name is not None:
        with torch.no_grad(), captured(module, (name,)) as outputs:
            module(example)
        if name not in outputs:
            raise ValueError(f"layer {name!r} takes no part in the forward pass; choose another with --layer")
        shape = tuple(outputs[name].shape)
        layer = _read_grid(name, shape, module, example)
        if layer is None:
            raise ValueError(
                f"layer {name!r} has no grid of positions, its output is {shape}; choose another with --layer"
            )
        return layer
    trace = _trace(module, example)
    widths = Counter(record.tensor.shape[-1] for record in trace if record.tensor.ndim == 3)
    stream = widths.most_common(1)[0][0] if widths else None
    head = max((place for place, record in enumerate(trace) if record.leaf), default=len(trace))
    for record in reversed(trace[:head]):
        # Inside an attention or MLP block the tokens have other widths than the stream that runs through the net.
        if record.tensor.ndim == 3 and record.tensor.shape[-1] != stream:
            continue
        layer = _read_grid(record.name, tuple(record.tensor.shape), module, example)
        if layer and layer.height * layer.width > 1 and _reaches_scores(layer, record.gradient):
            return layer
    raise LookupError("no layer of this model keeps a grid of positions that reaches the scores; name one with --layer")


@dataclass
class _Record:
    """One layer's output in the order of the forward pass; `leaf` if the layer holds parameters and no other layers."""

    name: str
    leaf: bool
    tensor: Tensor
    gradient: Tensor | None = field(default=None)


def _trace(module: nn.Module, example: Tensor) -> list[_Record]:
    """The outputs of all layers that hold parameters, with the gradient of a random mix of the scores for each.

    Of layers that hand on the same tensor (`layer4` and `layer4.2`) the innermost is kept.
    """
    records: list[_Record] = []

    def keep(name: str, layer: nn.Module, output: Any) -> Any:
        tensor = _first_tensor(output)
        if tensor is None or (records and any(tensor is record.tensor for record in records)):
            return output
        tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        leaf = next(layer.children(), None) is None
        records.append(_Record(name, leaf, tensor))
        # What follows may work in place on a tensor that begins the graph, which autograd forbids.
        return _with_first_tensor(output, tensor.clone()) if leaf else output

    handles = [
        layer.register_forward_hook(lambda layer, _inputs, output, name=name: keep(name, layer, output))
        for name, layer in module.named_modules()
        if name and next(layer.parameters(), None) is not None
    ]
    try:
        with torch.enable_grad():
            output = _first_tensor(module(example))
    finally:
        for handle in handles:
            handle.remove()
    assert output is not None
    tensors = [record.tensor for record in records]
    # Any one score may be cut off by a last ReLU, and their plain sum is constant after a softmax.
    mix = torch.rand(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    gradients = torch.autograd.grad((mix * output).sum(), tensors, allow_unused=True)
    for record, gradient in zip(records, gradients, strict=True):
        record.gradient = gradient
    return records


def _read_grid(name: str, shape: tuple[int, ...], module: nn.Module, example: Tensor) -> FeatureLayer | None:
    """How an output of this shape holds a grid with the proportions of the input, or None if it does not."""
    height, width = example.shape[-2:]
    if len(shape) == 4:
        readings: list[tuple[Layout, tuple[int, ...]]] = [("channels-first", shape[2:]), ("channels-last", shape[1:3])]
        for layout, (rows, columns) in readings:
            # Strides of an uneven size are rounded, by one position at most.
            if abs(rows - columns * height / width) < 1.5 and rows <= height:
                return FeatureLayer(name, layout, rows, columns)
    if len(shape) == 3:
        declared = getattr(module, "num_prefix_tokens", None)
        for prefix in range(_MAX_PREFIX_TOKENS + 1) if declared is None else (declared,):
            patches = shape[1] - prefix
            rows = round((max(patches, 0) * height / width) ** 0.5)
            if rows and rows * rows * width == patches * height:
                return FeatureLayer(name, "tokens", rows, patches // rows, prefix)
    return None


def _reaches_scores(layer: FeatureLayer, gradient: Tensor | None) -> bool:
    """True if most positions of the grid have some gradient; those behind the last attention have exactly none."""
    if gradient is None:
        return False
    return bool((layer.grid(gradient).abs().amax(dim=1) > 0).float().mean() > 0.5)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def _with_first_tensor(output: Any, tensor: Tensor) -> Any:
    if isinstance(output, Tensor):
        return tensor
    return type(output)([tensor, *output[1:]])
