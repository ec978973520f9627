"""How a gradient with a number for each colour channel becomes a map with one number for each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

Reduce = Annotated[
    Literal["max", "mean", "norm", "sum"],
    Option("What becomes of the colour channels: their largest or mean absolute value, Euclidean norm, or signed sum."),
]


def reduced(gradient: Tensor, reduce: Reduce) -> Tensor:
    """The map `(B, h, w)` of a gradient `(B, C, h, w)`: at least zero, but for "sum", which keeps signs."""
    import torch

    if reduce == "max":
        return gradient.abs().amax(dim=1)
    if reduce == "mean":
        return gradient.abs().mean(dim=1)
    return gradient.sum(dim=1) if reduce == "sum" else torch.linalg.vector_norm(gradient, dim=1)
