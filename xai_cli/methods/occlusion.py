"""Occlusion: what the score loses when a window of the picture is covered.

    R = mean over the windows W that hold the pixel of  f(x) - f(x with W covered)

Windows of one size lie `--stride` apart; the last of a row and of a column end with the picture, and may be cut there.
Of a score that is linear in the pixels, R of windows that do not overlap is w (x - fill) summed over the window. What
no window shows is what several parts of a picture do together: of two things that speak for the class each alone
enough, covering one costs nothing.

Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Needs
from xai_cli.methods.perturbation import Perturbation, losses
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class Occlusion(Perturbation):
    """What the score loses when windows of the picture are covered; signed (Zeiler and Fergus 2013)."""

    name: ClassVar[str] = "occlusion"

    window: Annotated[
        float, Option("Side of the covered square: pixels, or below 1 a share of each side of the picture.", min=0.001)
    ] = 0.2
    stride: Annotated[
        float, Option("From one window to the next: pixels, or below 1 a share of each side of the picture.", min=0.001)
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, length in (("window", self.window), ("stride", self.stride)):
            if length >= 1 and length != round(length):
                raise ValueError(f"--{name} expects whole pixels, or a share below 1, found {length}")

    def needs(self, classifier: Classifier) -> Needs:
        for side in classifier.preprocessing.size:
            self._begins(side)
        return super().needs(classifier)

    def explain(self, evidence: Evidence) -> list[Attribution]:
        import torch

        sides = evidence.inputs.shape[-2:]
        # Which pixels of a row, and of a column, each window covers.
        down, across = (self._covered(side).to(evidence.inputs.device) for side in sides)
        samples = len(down) * len(across)
        masking = self.masking(evidence, partial(_outside, down, across), [samples] * len(evidence.inputs))
        found, checks = losses(masking)
        checks["evaluations"] = torch.full((len(found),), samples + 1)
        down, across = down.to(found[0].dtype), across.to(found[0].dtype)
        holding = down.sum(dim=0)[:, None] * across.sum(dim=0)
        # One by one, because a product of many matrices may round otherwise than one of few.
        maps = [[down.T @ each.view(len(down), len(across)) @ across / holding for each in lost.T] for lost in found]
        return [Attribution(torch.stack(each), signed=True, checks=checks) for each in zip(*maps, strict=True)]

    def _begins(self, side: int) -> tuple[int, list[int]]:
        """The length of the windows along a side, and where each begins.

        Raises ValueError for windows that are larger than the picture, or leave gaps.
        """
        window, stride = (max(1, round(each * side if each < 1 else each)) for each in (self.window, self.stride))
        if window > side:
            raise ValueError(
                f"--window expects at most the {side} pixels of the model's input, found {window}; give a share below 1"
            )
        if stride > window:
            raise ValueError(
                f"--stride expects at most the {window} pixels of a window, found {stride}, which leaves gaps; give "
                f"--stride {window} or a larger --window"
            )
        return window, [number * stride for number in range(1 + ceil((side - window) / stride))]

    def _covered(self, side: int) -> Tensor:
        """`(windows, side)`: which pixels along a side each window covers."""
        import torch

        window, begins = self._begins(side)
        places, starts = torch.arange(side), torch.tensor(begins)[:, None]
        return (places >= starts) & (places < starts + window)


def _outside(down: Tensor, across: Tensor, rows: Tensor, samples: Tensor) -> Tensor:
    """What is seen `(n, 1, h, w)` beside the window of each sample; windows are numbered row by row."""
    covered = down[samples // len(across)][:, :, None] & across[samples % len(across)][:, None, :]
    return ~covered[:, None]
