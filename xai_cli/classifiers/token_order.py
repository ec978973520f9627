"""Where the tokens of a net lie in the picture: mostly row by row behind a class token; Hiera's lie by mask unit.

Nothing is known of an architecture beforehand. A picture of which one quadrant after the other is changed shows which
tokens are patches, and numbered tokens show which layer brings them into another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.classifiers.hooks import hooked


@dataclass(frozen=True)
class TokenOrder:
    """The order that one layer of a net brings its tokens into.

    Attributes:
        places: `(N,)`, where in the picture each token comes from, counted row by row.
        before: names of the layers that are done by then.
    """

    places: Tensor
    before: frozenset[str]

    def cells(self, height: int, width: int) -> tuple[int, ...] | None:
        """Which of `height * width` tokens lies in each cell of that grid, row by row; None if they fill no cells.

        Tokens are reordered in order to pool them by folding: each of the n that are left stands for the patches that
        were n tokens apart.
        """
        tokens = height * width
        side = round((len(self.places) / tokens) ** 0.5)
        if side * side * tokens != len(self.places):
            return None
        patches = (self.places.argsort() % tokens).view(height * side, width * side)
        cells = patches[::side, ::side]
        if not torch.equal(cells.repeat_interleave(side, 0).repeat_interleave(side, 1), patches):
            return None
        return tuple(cells.flatten().tolist())


def find_token_order(module: nn.Module, example: Tensor) -> TokenOrder | None:
    """The order that a layer brings tokens `(B, N, K)` into, if one gives numbered tokens in another order.

    `example` `(B, C, h, w)` is run once. Only layers without parameters are asked; of several the first counts.
    """
    done: list[str] = []
    found: list[TokenOrder] = []

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not found and next(layer.parameters(), None) is None and _is_same_tokens(inputs, output):
            numbers = torch.arange(output.shape[1], device=output.device)
            places = layer.forward(numbers.float()[None, :, None].expand(output.shape))[0, :, 0]
            if not torch.equal(places, numbers) and torch.equal(places.sort().values, numbers):
                found.append(TokenOrder(places.long().cpu(), frozenset(done)))
        done.append(name)

    handles = (
        layer.register_forward_hook(lambda *call, name=name: look(name, *call))
        for name, layer in module.named_modules()
    )
    with torch.no_grad(), hooked(handles):
        module(example)
    return found[0] if found else None


def _is_same_tokens(inputs: tuple[Any, ...], output: Any) -> bool:
    """True if a layer was given nothing but tokens and made as many of them."""
    return (
        len(inputs) == 1
        and isinstance(inputs[0], Tensor)
        and isinstance(output, Tensor)
        and output.ndim == 3
        and output.shape == inputs[0].shape
    )


@dataclass(frozen=True)
class TokenMoves:
    """How tokens `(B, N, K)` move with each quadrant of the picture, row by row, where as many are first met.

    Attributes:
        tokens: `(4, N)`.
        values: `(4, K)`, the same of what stands on the last axis.
    """

    tokens: Tensor
    values: Tensor

    def patches(self, height: int, width: int) -> tuple[int, ...] | None:
        """Which tokens are the patches of that grid, row by row; None if what moves contradicts it.

        The others are constant before tokens are mixed. If they are mixed already, the patches are said to stand last.
        """
        count = self.tokens.shape[1]
        if _locality(self.values).mean() > max(0.5, float(_locality(self.tokens).mean())):
            return None  # channels, of which each has all tokens
        moving = self.tokens.amax(0) > torch.finfo(self.tokens.dtype).eps ** 0.5 * self.tokens.max()
        others = count - height * width
        places = torch.arange(others, count) if moving.all() else moving.nonzero()[:, 0].cpu()
        # A class token that has seen the tokens moves with all quadrants.
        if len(places) != height * width or (moving.all() and (_locality(self.tokens[:, :others]) > 0.5).any()):
            return None
        return tuple(places.tolist()) if _lie_in_grid(self.tokens[:, places], height, width) else None


def find_token_moves(module: nn.Module, example: Tensor) -> Mapping[int, TokenMoves]:
    """How the first tokens `(B, N, K)` move that any layer takes or gives, by their number N.

    `example` `(1, C, h, w)` and four copies of it are run once.
    """
    pictures = with_quadrants_changed(example)
    found: dict[int, TokenMoves] = {}

    def look(given: Any) -> None:
        tokens = given[0] if isinstance(given, tuple | list) and given else given
        if not isinstance(tokens, Tensor) or not tokens.is_floating_point() or tokens.ndim != 3:
            return
        if len(tokens) == len(pictures) and tokens.shape[1] not in found:
            moves = (tokens[1:] - tokens[:1]).float().abs()
            if moves.any() and moves.isfinite().all():  # embedded positions do not
                found[tokens.shape[1]] = TokenMoves(moves.sum(2), moves.sum(1))

    layers = list(module.modules())
    given = (layer.register_forward_pre_hook(lambda _layer, inputs: look(inputs)) for layer in layers)
    taken = (layer.register_forward_hook(lambda _layer, _inputs, output: look(output)) for layer in layers)
    with torch.no_grad(), hooked(given), hooked(taken):
        module(pictures)
    return found


def with_quadrants_changed(example: Tensor) -> Tensor:
    """The example and four copies, each with another quadrant, row by row."""
    inputs = example.repeat(5, 1, 1, 1)
    height, width = (side // 2 for side in example.shape[-2:])
    for place, copy in enumerate(inputs[1:]):
        below, right = divmod(place, 2)
        copy[:, below * height :, right * width :][:, :height, :width] *= -2
    return inputs


def _locality(moves: Tensor) -> Tensor:
    """The share of one quadrant in what moves each token, `(N,)`, from a quarter to one."""
    return moves.amax(0) / moves.sum(0).clamp(min=torch.finfo(moves.dtype).tiny)


def _lie_in_grid(moves: Tensor, height: int, width: int) -> bool:
    """False if patches move with one quadrant, but with another than that of the grid they would lie in."""
    if min(height, width) < 2 or _locality(moves).mean() <= 0.5:
        return True
    rows, columns = (torch.arange(side).mul(2).div(side, rounding_mode="floor") for side in (height, width))
    quadrants = (2 * rows[:, None] + columns).flatten()
    by_quadrant = torch.stack([moves[:, quadrants == place].mean(1) for place in range(4)])
    return by_quadrant.argmax(1).tolist() == [0, 1, 2, 3]
