"""Position embeddings and tables of relative position biases, resampled to another grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

_MOST_PREFIX_TOKENS = 16
"""Class, distillation and register tokens, of which no model has more."""
_MOST_EXTRA_ROWS = 3
"""Of a bias table with a class token: from it, to it, to itself (BEiT)."""


def resampled(tensor: Tensor, shape: Sequence[int], *, linear: bool) -> Tensor:
    """The positions in another shape, of the same type.

    Of an embedding, (1, prefix + h*h, C), (1, h, w, C) or (1, C, h, w), the grid is resampled with antialiasing and the
    prefix tokens are kept, as timm's `resample_abs_pos_embed` does it. Of a table of relative position biases,
    ((2w-1)^2 + extra, heads) or (heads, H, W), the grid is resampled without antialiasing and the extra rows are kept,
    as its `resize_rel_pos_bias_table_simple` does it.

    Args:
        tensor: the positions of one model.
        shape: what the other model has.
        linear: what was not negative stays so, which Fisher information needs; else bicubic, for weights.

    Raises:
        ValueError: no grid of both shapes is known.
    """
    old, new = tuple(tensor.shape), tuple(shape)
    values, mode = tensor.float(), "bilinear" if linear else "bicubic"
    result: Tensor | None = None
    if len(old) == len(new) == 4 and old[0] == new[0] == 1 and old[3] == new[3]:
        grid = _interpolated(values.permute(0, 3, 1, 2), new[1:3], mode, antialias=True)
        result = grid.permute(0, 2, 3, 1)
    elif len(old) == len(new) == 4 and old[:2] == new[:2] and old[0] == 1:
        result = _interpolated(values, new[2:], mode, antialias=True)
    elif len(old) == len(new) == 3 and old[0] == new[0] == 1 and old[2] == new[2]:
        result = _embedding(values, new[1], mode)
    elif len(old) == len(new) == 3 and old[0] == new[0] > 1:
        result = _interpolated(values[None], new[1:], mode, antialias=False)[0]
    elif len(old) == len(new) == 2 and old[1] == new[1]:
        result = _table(values, new[0], mode)
    if result is None:
        raise ValueError(
            f"positions of shape {old} cannot be resampled to {new}: expected square grids of the same width, with the "
            "same tokens beside them"
        )
    return result.to(tensor.dtype).contiguous()


def _embedding(values: Tensor, tokens: int, mode: str) -> Tensor | None:
    """(1, prefix + h*h, C) with so many tokens."""
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        old, new = _side(values.shape[1] - prefix), _side(tokens - prefix)
        if old and new:
            grid = values[:, prefix:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
            grid = _interpolated(grid, (new, new), mode, antialias=True)
            return torch.cat([values[:, :prefix], grid.flatten(2).transpose(1, 2)], 1)
    return None


def _table(values: Tensor, rows: int, mode: str) -> Tensor | None:
    """((2w-1)^2 + extra, heads) with so many rows."""
    for extra in range(_MOST_EXTRA_ROWS + 1):
        old, new = _side(len(values) - extra), _side(rows - extra)
        if old % 2 and new % 2:
            grid = values[: old * old].T.unflatten(1, (old, old))[None]
            grid = _interpolated(grid, (new, new), mode, antialias=False)[0]
            return torch.cat([grid.flatten(1).T, values[old * old :]])
    return None


def _side(cells: int) -> int:
    """Of a square grid of so many cells; 0 if there is none."""
    side = isqrt(max(cells, 0))
    return side if side * side == cells else 0


def _interpolated(grid: Tensor, size: Sequence[int], mode: str, *, antialias: bool) -> Tensor:
    """(1, C, h, w) in another size."""
    return functional.interpolate(grid, size=tuple(size), mode=mode, align_corners=False, antialias=antialias)
