"""Layers that keep a grid of positions: how their output is kept and read.

An activation is read as `(B, K, H, W)` whatever its layout: channels first, channels last (Swin), or tokens `(B, N, K)`
with prefix tokens (class, distillation, registers) before the patches, which may lie in an order of their own (Hiera)
or have such tokens behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xai_cli.classifiers.hooks import hooked
from xai_cli.classifiers.token_order import TokenMoves, TokenOrder, find_token_moves, find_token_order
from xai_cli.sentences import unknown

Layout = Literal["channels-first", "channels-last", "tokens"]
_MAX_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class FeatureLayer:
    """A layer with a grid of `height` x `width` positions, and where its activation keeps them.

    Attributes:
        prefix: how many tokens stand before those of the grid.
        order: which of the tokens lies at each position, row by row; None if they lie there one after the other.
    """

    name: str
    layout: Layout
    height: int
    width: int
    prefix: int = 0
    order: tuple[int, ...] | None = field(default=None, repr=False)

    def grid(self, activation: Tensor) -> Tensor:
        """The activation, or its gradient, as `(B, K, H, W)`, at least float32, without the prefix tokens."""
        if self.layout == "channels-last":
            activation = activation.permute(0, 3, 1, 2)
        elif self.layout == "tokens":
            patches = activation[:, self.prefix :]
            if self.order is not None:
                patches = patches[:, torch.tensor(self.order, device=patches.device)]
            activation = patches.transpose(1, 2).unflatten(2, (self.height, self.width))
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
            raise LookupError(unknown("layer", name, filter(None, modules), always=True))
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> Any:
        tensor = first_tensor(output)
        # Whole numbers take no gradient.
        if tensor is None or not tensor.is_floating_point():
            return output
        outputs[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        # What follows gets a copy: an in-place operation there must not change what was kept.
        return with_first_tensor(output, outputs[name].clone())

    handles = (
        modules[name].register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name in names
    )
    with hooked(handles):
        yield outputs


@contextmanager
def replaced(module: nn.Module, name: str, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the layer called `name` gives `make(output)` instead of its output."""

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        return output if tensor is None else with_first_tensor(output, make(tensor))

    with hooked([module.get_submodule(name).register_forward_hook(replace)]):
        yield


@dataclass(frozen=True)
class Grids:
    """Finds grids with the proportions of the input in the outputs of a model's layers.

    `example` `(B, C, h, w)` is run only if there are tokens to read, of which the patches are found by how they move.
    """

    module: nn.Module
    example: Tensor

    def read(self, name: str, shape: tuple[int, ...]) -> FeatureLayer | None:
        """How an output of this shape of the layer called `name` holds a grid of several positions, or None."""
        found = self._in_map(name, shape) if len(shape) == 4 else self._in_tokens(name, shape)
        return found if found and found.height * found.width > 1 else None

    def _in_map(self, name: str, shape: tuple[int, ...]) -> FeatureLayer | None:
        height, width = self.example.shape[-2:]
        readings: list[tuple[Layout, tuple[int, ...]]] = [("channels-first", shape[2:]), ("channels-last", shape[1:3])]
        for layout, (rows, columns) in readings:
            # Strides of an uneven size are rounded, by one position at most.
            if abs(rows - columns * height / width) < 1.5 and rows <= height:
                return FeatureLayer(name, layout, rows, columns)
        return None

    def _in_tokens(self, name: str, shape: tuple[int, ...]) -> FeatureLayer | None:
        if len(shape) != 3:
            return None
        height, width = self.example.shape[-2:]
        declared = getattr(self.module, "num_prefix_tokens", None)
        # Patches have no prefix yet when they are embedded.
        for prefix in range(_MAX_PREFIX_TOKENS + 1) if declared is None else (declared, 0):
            patches = shape[1] - prefix
            rows = round((max(patches, 0) * height / width) ** 0.5)
            if rows and rows * rows * width == patches * height:
                layer = FeatureLayer(name, "tokens", rows, patches // rows, prefix)
                found = self._ordered(layer) if self._is_reordered(name) else self._placed(layer, shape[1])
                if found:
                    return found
        return None

    def _is_reordered(self, name: str) -> bool:
        return self._order is not None and name not in self._order.before

    def _placed(self, layer: FeatureLayer, tokens: int) -> FeatureLayer | None:
        """The layer with the places of its patches among the tokens, or None if its tokens are no such grid."""
        if tokens not in self._moves:
            return layer
        places = self._moves[tokens].patches(layer.height, layer.width)
        if places is None or places == tuple(range(layer.prefix, tokens)):
            return layer if places else None
        return replace(layer, prefix=0, order=places)

    def _ordered(self, layer: FeatureLayer) -> FeatureLayer | None:
        """The layer with the order of its tokens, or None if they are no grid in any."""
        assert self._order is not None
        cells = self._order.cells(layer.height, layer.width)
        if cells is None:
            return None
        return replace(layer, order=None if cells == tuple(range(len(cells))) else cells)

    @cached_property
    def _order(self) -> TokenOrder | None:
        return find_token_order(self.module, self.example[:1])

    @cached_property
    def _moves(self) -> Mapping[int, TokenMoves]:
        return find_token_moves(self.module, self.example[:1])


def first_tensor(output: Any) -> Tensor | None:
    """A layer's output if it is a tensor, or the first of several, or None."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """A layer's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if hasattr(output, "_fields"):  # a named tuple
        return type(output)(tensor, *output[1:])
    return type(output)([tensor, *output[1:]])


def scores_in(output: Any) -> Any:
    """The class scores inside whatever a model returns: itself, `.logits`, `["logits"]`, or the first of a tuple."""
    if isinstance(output, dict):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, tuple | list) and output else output


def output_tensor(output: Any) -> Tensor:
    """The class scores inside whatever a model returns. Raises ValueError if they are no tensor."""
    scores = scores_in(output)
    if not isinstance(scores, Tensor):
        raise ValueError(f"the model must return a tensor of class scores (B, K), found {type(output).__name__}")
    return scores
