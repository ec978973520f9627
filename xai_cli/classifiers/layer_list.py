"""The layers of a model in the order of its forward pass: what each gives, and where a grid of positions lies in it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.layers import FeatureLayer, first_tensor, read_grid

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer that takes part in the forward pass.

    Attributes:
        shape: of its last output, for one picture; None if that is no tensor.
        grid: how a grid of positions is read from the output, if it holds one.
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
    # Of one picture alone, a window or a head cannot be told from a picture.
    one, two = (_shapes(module, example.repeat(pictures, 1, 1, 1)) for pictures in (1, 2))
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
            None if name in classifier.folded else _grid(name, two.get(name), module, example),
            classifier.folded.get(name),
            name == chosen,
        )
        for name, shape in one.items()
    ]


def _grid(name: str, shape: Shape | None, module: nn.Module, example: Tensor) -> FeatureLayer | None:
    """How the output of this shape for two pictures holds a grid of more than one position."""
    grid = read_grid(name, shape, module, example) if shape and shape[0] == 2 else None
    return grid if grid and grid.height * grid.width > 1 else None


def _shapes(module: nn.Module, inputs: Tensor) -> dict[str, Shape | None]:
    """The shape of each layer's last output, by name, in the order in which the layers begin."""
    shapes: dict[str, Shape | None] = {}

    def begin(name: str) -> None:
        shapes.setdefault(name, None)

    def end(name: str, output: Any) -> None:
        tensor = first_tensor(output)
        shapes[name] = None if tensor is None else tuple(tensor.shape)

    handles = []
    try:
        for name, layer in module.named_modules():
            if name:
                handles.append(layer.register_forward_pre_hook(lambda *_, name=name: begin(name)))
                handles.append(layer.register_forward_hook(lambda *call, name=name: end(name, call[-1])))
        with torch.no_grad():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
