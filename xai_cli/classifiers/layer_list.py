"""The layers of a model in the order of its forward pass: what each gives, and where a grid of positions lies in it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.feature_layer import probed, reaches_scores, two_pictures
from xai_cli.classifiers.hooks import hooked
from xai_cli.classifiers.layers import FeatureLayer, Grids, first_tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer that takes part in the forward pass.

    Attributes:
        shape: of its last output, for one picture; None if that is no tensor.
        grid: how a grid of positions that the scores depend on is read from the output, if it holds one.
        norm: the batch norm that is folded in: the output is the norm's, and its grid is that of the norm's name.
        chosen: a class activation map looks here if no other layer is named.
    """

    name: str
    type: str
    shape: Shape | None
    grid: FeatureLayer | None
    norm: str | None
    chosen: bool


def list_layers(classifier: Classifier) -> list[Layer]:
    """All layers that take part in the forward pass, in the order in which they begin."""
    module, example = classifier.module, classifier.example().to(classifier.dtype)
    shapes = _shapes(module, example)
    grids = _grids(module, example, shapes)
    chosen = None
    # A model that cannot be differentiated has layers all the same.
    with suppress(Exception):
        chosen = classifier.feature_layer().name
    layers = dict(module.named_modules())
    return [
        Layer(
            name,
            type(layers[name]).__name__,
            shape,
            None if name in classifier.folded else grids.get(name),
            classifier.folded.get(name),
            name == chosen,
        )
        for name, shape in shapes.items()
    ]


def _grids(module: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, FeatureLayer]:
    """The layers that a class activation map can look at, by name, as it would find when they are named."""
    pictures = two_pictures(example)
    gradients = None
    with suppress(Exception):
        gradients = probed(module, pictures, names)[1]
    reader = Grids(module, example)
    found = {}
    for name, shape in _shapes(module, pictures).items():
        layer = reader.read(name, shape) if shape and shape[0] == len(pictures) else None
        if layer and (gradients is None or reaches_scores(layer, gradients.get(name))):
            found[name] = layer
    return found


def _shapes(module: nn.Module, inputs: Tensor) -> dict[str, Shape | None]:
    """The shape of each layer's last output, by name, in the order in which the layers begin."""
    shapes: dict[str, Shape | None] = {}

    def begin(name: str) -> None:
        shapes.setdefault(name, None)

    def end(name: str, output: Any) -> None:
        tensor = first_tensor(output)
        shapes[name] = None if tensor is None else tuple(tensor.shape)

    handles = []
    for name, layer in module.named_modules():
        if name:
            handles.append(layer.register_forward_pre_hook(lambda *_, name=name: begin(name)))
            handles.append(layer.register_forward_hook(lambda *call, name=name: end(name, call[-1])))
    with torch.no_grad(), hooked(handles):
        module(inputs)
    return shapes
