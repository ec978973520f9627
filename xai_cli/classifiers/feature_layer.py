"""Which layer a class activation map looks at: the last one with a grid of positions that still reach the scores.

Nothing is known of an architecture beforehand. One pass with a gradient shows what each layer's output is, and whether
the scores still depend on every position of it: behind the last attention of a net that reads its class token they do
not, and a map would be zero. Of a plain convolution the map is that of the activation behind it: what is negative there
never reaches the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.classifiers.hooks import hooked
from xai_cli.classifiers.layers import (
    FeatureLayer,
    Grids,
    captured,
    first_tensor,
    output_tensor,
    replaced,
    with_first_tensor,
)

_SUGGESTED = 3


def find_feature_layer(module: nn.Module, example: Tensor, name: str | None = None) -> FeatureLayer:
    """The layer called `name`, or else the last one before the head whose every position still reaches the scores.

    `example` `(1, C, h, w)` is run forward and backward. Raises LookupError if no layer has that name or none
    qualifies, ValueError if the named layer has no spatial extent or none of its positions reaches the scores.
    """
    example = two_pictures(example)
    if name is not None:
        return _named_layer(module, example, name)
    layer = next(_late_layers(module, example), None)
    if layer is None:
        raise LookupError(
            "no late layer of this model keeps its positions as the picture has them and reaches the scores; "
            "name one with --layer"
        )
    return layer


def two_pictures(example: Tensor) -> Tensor:
    """A batch `(2, C, h, w)`, because of one picture alone a window or a head cannot be told from a picture; different
    ones, because by chance a rectifier may let nothing through of one.
    """
    return torch.cat([example, -example])


def probed(
    module: nn.Module, example: Tensor, names: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor | None] | None]:
    """The last outputs of the named layers, and the gradient of the scores for each, None where they do not depend on
    it. There are no gradients at all of a model that keeps none.
    """
    with torch.enable_grad(), captured(module, tuple(names)) as outputs:
        # The copy may be worked on in place, which autograd forbids of the tensor that begins the graph.
        scores = output_tensor(module(example.detach().requires_grad_().clone()))
    if not scores.requires_grad or not outputs:
        return outputs, None
    return outputs, dict(zip(outputs, _gradients(scores, list(outputs.values())), strict=True))


def reaches_scores(layer: FeatureLayer, gradient: Tensor | None) -> bool:
    """True if some position of the grid has a gradient; behind the last attention of a net that reads its class token
    none has.
    """
    return gradient is not None and bool(layer.grid(gradient).any())


def _named_layer(module: nn.Module, example: Tensor, name: str) -> FeatureLayer:
    outputs, gradients = probed(module, example, (name,))
    shape = tuple(outputs[name].shape) if name in outputs else None
    layer = Grids(module, example).read(name, shape) if shape and shape[0] == len(example) else None
    if layer and (gradients is None or reaches_scores(layer, gradients[name])):
        return layer
    if shape is None:
        fault = f"layer {name!r} takes no part in the forward pass"
    elif shape[:1] != (len(example),):
        fault = f"layer {name!r} does not work on whole pictures, its output for two of them is {shape}"
    elif layer is None:
        fault = f"layer {name!r} has no grid of positions, its output is {(1, *shape[1:])}"
    else:
        assert gradients is not None
        fault = f"the scores do not depend on the positions of layer {name!r}, the gradient there is exactly zero"
        gradient = gradients[name]
        if gradient is not None and gradient.any():
            fault += ": it is behind the last attention, and only its class token is read"
    raise ValueError(f"{fault}; choose another with --layer{_such_as(module, example)}")


def _such_as(module: nn.Module, example: Tensor) -> str:
    """The names of some late layers that can be chosen, none inside another, first the one chosen by itself."""
    names: list[str] = []
    for layer in _late_layers(module, example):
        if not any(layer.name.startswith(f"{name}.") for name in names):
            names.append(layer.name)
        if len(names) == _SUGGESTED:
            break
    return f", such as {' or '.join(map(repr, names))}" if names else ""


def _late_layers(module: nn.Module, example: Tensor) -> Iterator[FeatureLayer]:
    """The layers that a class activation map may look at, the last first."""
    grids = Grids(module, example)
    for record in _candidates(_trace(module, example)):
        layer = grids.read(record.name, tuple(record.tensor.shape))
        if layer and _mostly_reaches_scores(layer, record.gradient):
            yield _activated(module, example, layer)


def _activated(module: nn.Module, example: Tensor, layer: FeatureLayer) -> FeatureLayer:
    """The activation that alone takes the layer's output, or the layer itself if there is none."""
    name = _next_activation(module, example, layer.name)
    if name is None:
        return layer
    with replaced(module, name, Tensor.detach):
        past = probed(module, example, (layer.name,))[1]
    if past and past[layer.name] is not None:
        return layer  # the scores have it by another way too
    activation = replace(layer, name=name)
    gradients = probed(module, example, (name,))[1]
    return activation if gradients and _mostly_reaches_scores(activation, gradients[name]) else layer


def _next_activation(module: nn.Module, example: Tensor, name: str) -> str | None:
    """The layer without parameters that is called once, with the output of the layer called `name`, and changes each of
    its values by itself.
    """
    given: list[Tensor] = []
    kept: dict[str, Tensor] = {}
    calls: list[str] = []
    found: list[str] = []

    def begin(other: str, inputs: tuple[Any, ...]) -> None:
        calls.append(other)
        if given and len(inputs) == 1 and inputs[0] is given[-1]:
            kept[other] = inputs[0].clone()  # the activation may work in place

    def end(other: str, layer: nn.Module, output: Any) -> None:
        before = kept.pop(other, None)
        if before is not None and _is_elementwise(layer, before, output):
            found.append(other)
        if other == name:
            given[:] = [tensor for tensor in (first_tensor(output),) if tensor is not None]

    handles = []
    for other, layer in module.named_modules():
        if other == name or not (list(layer.children()) or list(layer.parameters())):
            handles.append(layer.register_forward_pre_hook(lambda _, inputs, other=other: begin(other, inputs)))
            handles.append(layer.register_forward_hook(lambda layer, _, output, other=other: end(other, layer, output)))
    with torch.no_grad(), hooked(handles):
        module(example)
    return next((other for other in found if calls.count(other) == 1), None)


def _is_elementwise(layer: nn.Module, before: Tensor, after: Any) -> bool:
    """True if a layer changes values, and those in another place in the same way."""
    if not isinstance(after, Tensor) or after.shape != before.shape or torch.equal(before, after):
        return False
    moved = layer.forward(before.flatten().roll(1).view_as(before))
    return torch.allclose(moved.flatten(), after.flatten().roll(1))


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
    # Of a layer that is called several times the last output is looked at.
    last = {record.name: place for place, record in enumerate(trace)}
    # Linear layers are the inside of attention and MLPs, not the stream of tokens through the net.
    return [
        record
        for place, record in reversed([*enumerate(trace[:head])][head // 2 :])
        if last[record.name] == place and (record.tensor.ndim != 3 or not isinstance(record.layer, nn.Linear))
    ]


def _trace(module: nn.Module, example: Tensor) -> list[_Record]:
    """The outputs of all layers that hold parameters, with the gradient of a random mix of the scores for each.

    Of layers that hand on the same tensor (`layer4` and `layer4.2`) the innermost is kept. Left out is whatever has
    another batch size than the example: windows, heads and patches that are looked at one by one.
    """
    records: list[_Record] = []

    def keep(name: str, layer: nn.Module, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.shape[:1] != example.shape[:1]:
            return output
        # The same tensor after an operation in place is another output.
        if any(tensor is record.tensor and tensor._version == record.version for record in records):
            return output
        tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        records.append(_Record(name, layer, tensor, tensor._version))
        # What follows may work in place on a tensor that begins the graph, which autograd forbids.
        return with_first_tensor(output, tensor.clone()) if records[-1].is_leaf else output

    handles = (
        layer.register_forward_hook(lambda layer, _inputs, output, name=name: keep(name, layer, output))
        for name, layer in module.named_modules()
        if name and next(layer.parameters(), None) is not None
    )
    with torch.enable_grad(), hooked(handles):
        output = output_tensor(module(example))
    if not output.requires_grad:
        raise ValueError("the model's forward pass keeps no gradient; take torch.no_grad out of it")
    gradients = _gradients(output, [record.tensor for record in records])
    for record, gradient in zip(records, gradients, strict=True):
        record.gradient = gradient
    return records


def _gradients(scores: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of a random mix of the scores for each tensor, None where they do not depend on it."""
    # Any one score may be cut off by a last ReLU, and their plain sum is constant after a softmax.
    mix = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)).to(scores)
    return torch.autograd.grad((mix * scores).sum(), tensors, allow_unused=True)


def _mostly_reaches_scores(layer: FeatureLayer, gradient: Tensor | None) -> bool:
    """True if most positions of the grid have some gradient."""
    return gradient is not None and bool((layer.grid(gradient).abs().amax(dim=1) > 0).float().mean() > 0.5)
