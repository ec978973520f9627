"""Which layer a class activation map looks at: the last one with a grid of positions that still reach the scores.

Nothing is known of an architecture beforehand. One pass with a gradient shows what each layer's output is, and whether
the scores still depend on every position of it: behind the last attention of a net that reads its class token they do
not, and a map would be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.classifiers.layers import FeatureLayer, captured, first_tensor, output_tensor, read_grid, with_first_tensor


def find_feature_layer(module: nn.Module, example: Tensor, name: str | None = None) -> FeatureLayer:
    """The layer called `name`, or else the last one before the head whose every position still reaches the scores.

    `example` `(1, C, h, w)` is run once, forward and backward. Raises LookupError if no layer has that name or none
    qualifies, ValueError if the named layer has no spatial extent.
    """
    # Two pictures, because of one alone a window or a head cannot be told from a picture.
    example = example.repeat(2, 1, 1, 1)
    if name is not None:
        return _named_layer(module, example, name)
    for record in _candidates(_trace(module, example)):
        layer = read_grid(record.name, tuple(record.tensor.shape), module, example)
        if layer and layer.height * layer.width > 1 and _reaches_scores(layer, record.gradient):
            return layer
    raise LookupError(
        "no late layer of this model keeps its positions as the picture has them and reaches the scores; "
        "name one with --layer"
    )


def _named_layer(module: nn.Module, example: Tensor, name: str) -> FeatureLayer:
    with torch.no_grad(), captured(module, (name,)) as outputs:
        module(example)
    if name not in outputs:
        raise ValueError(f"layer {name!r} takes no part in the forward pass; choose another with --layer")
    shape = tuple(outputs[name].shape)
    if not shape or shape[0] != len(example):
        raise ValueError(
            f"layer {name!r} does not work on whole pictures, its output for two of them is {shape}; "
            "choose another with --layer"
        )
    layer = read_grid(name, shape, module, example)
    if layer is None:
        raise ValueError(
            f"layer {name!r} has no grid of positions, its output is {(1, *shape[1:])}; choose another with --layer"
        )
    return layer


@dataclass
class _Record:
    """One layer's output in the order of the forward pass."""

    name: str
    layer: nn.Module
    tensor: Tensor
    version: int
    gradient: Tensor | None = None

    @property
    def is_leaf(self) -> bool:
        return next(self.layer.children(), None) is None


def _candidates(trace: list[_Record]) -> list[_Record]:
    """The outputs in the later half of the net, before its head, that may be features; the last first."""
    head = max((place for place, record in enumerate(trace) if record.is_leaf), default=len(trace))
    # Linear layers are the inside of attention and MLPs, not the stream of tokens through the net.
    return [
        record
        for record in reversed(trace[head // 2 : head])
        if record.tensor.ndim != 3 or not isinstance(record.layer, nn.Linear)
    ]


def _trace(module: nn.Module, example: Tensor) -> list[_Record]:
    """The outputs of all layers that hold parameters, with the gradient of a random mix of the scores for each.

    Of layers that hand on the same tensor (`layer4` and `layer4.2`) the innermost is kept. Left out is whatever has
    another batch size than the example: windows, heads and patches that are looked at one by one.
    """
    records: list[_Record] = []

    def keep(name: str, layer: nn.Module, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None or len(tensor) != len(example):
            return output
        # The same tensor after an operation in place is another output.
        if any(tensor is record.tensor and tensor._version == record.version for record in records):
            return output
        tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        records.append(_Record(name, layer, tensor, tensor._version))
        # What follows may work in place on a tensor that begins the graph, which autograd forbids.
        return with_first_tensor(output, tensor.clone()) if records[-1].is_leaf else output

    with torch.enable_grad(), _hooked(module, keep):
        output = output_tensor(module(example))
    if not output.requires_grad:
        raise ValueError("the model's forward pass keeps no gradient; take torch.no_grad out of it")
    # Any one score may be cut off by a last ReLU, and their plain sum is constant after a softmax.
    mix = torch.rand(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    gradients = torch.autograd.grad((mix * output).sum(), [record.tensor for record in records], allow_unused=True)
    for record, gradient in zip(records, gradients, strict=True):
        record.gradient = gradient
    return records


@contextmanager
def _hooked(module: nn.Module, keep: Callable[[str, nn.Module, Any], Any]) -> Iterator[None]:
    """While open, `keep(name, layer, output)` replaces the output of every layer that holds parameters."""
    handles = [
        layer.register_forward_hook(lambda layer, _inputs, output, name=name: keep(name, layer, output))
        for name, layer in module.named_modules()
        if name and next(layer.parameters(), None) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reaches_scores(layer: FeatureLayer, gradient: Tensor | None) -> bool:
    """True if most positions of the grid have some gradient; those behind the last attention have exactly none."""
    if gradient is None:
        return False
    return bool((layer.grid(gradient).abs().amax(dim=1) > 0).float().mean() > 0.5)
