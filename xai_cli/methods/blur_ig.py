"""Blur integrated gradients: the share of each pixel in the change of the score as a blurred picture becomes sharp.

    R_i = sum_c  integral from S to 0 of  df/dx_ic (x_s)  dx_s,ic / ds  ds,     x_s = x under a Gaussian blur of width s

The path has no baseline colour: it begins with the picture blurred by `--max-sigma` and takes in ever finer detail. The
blur is a product in the cosine basis, so the picture is mirrored at its borders and no dark frame comes in. The path is
walked in `--steps` straight pieces, the gradient taken in the middle of each, at places evenly spaced in log(1 + s)
with s in pixels: the score moves most at small s, and even spacing in s, as published, leaves three to ten times the
error.

Completeness: sum_i R_i = f(x) - f(x_S), up to the error of the quadrature; that error is measured for every picture as
`completeness_gap` = |sum R - (f(x) - f(x_S))| / |f(x) - f(x_S)|. What the blurred picture still shows, its coarse
layout and its colours, is not explained, and nor are plain areas, which blurring leaves as they are.

Xu, Venugopalan, Sundararajan: Attribution in Scale and Space, 2020 (arXiv:2004.03383).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.compared import completeness_gap
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class BlurIntegratedGradients(Method):
    """Gradients integrated from the blurred picture to the sharp one; signed (Xu 2020)."""

    name: ClassVar[str] = "blur-ig"
    family: ClassVar[str] = "gradient"

    steps: Annotated[int, Option("Gradients per picture.", min=1, max=100_000)] = 50
    max_sigma: Annotated[
        float, Option("Widest blur: standard deviation, as share of the picture's longer side.", min=0.01, max=10)
    ] = 0.22  # 50 of 224 pixels, as published

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        import torch

        assert evidence.logits is not None
        inputs = evidence.inputs
        blurs = Blurs.of(inputs)
        widest = self.max_sigma * max(inputs.shape[-2:])
        sigmas = (1 + widest) ** torch.linspace(1, 0, self.steps + 1, dtype=inputs.dtype, device=inputs.device) - 1
        relevance = torch.zeros_like(inputs[:, 0])
        for rows, steps, real in evidence.chunks(self.steps):
            begin, end = blurs.at(sigmas[steps], rows), blurs.at(sigmas[steps + 1], rows)
            gradient = evidence.score_gradient((begin + end) / 2, rows)
            relevance.index_add_(0, rows[:real], ((end - begin) * gradient).sum(dim=1)[:real])
        begins = []
        for rows, real in evidence.parts():
            with torch.no_grad():
                logits = evidence.classifier.logits(blurs.at(sigmas[:1].expand(len(rows)), rows))
            begins.append(evidence.scores(logits, rows)[:real])
        change = evidence.scores(evidence.logits) - torch.cat(begins)
        return Attribution(relevance, signed=True, checks={"completeness_gap": completeness_gap(relevance, change)})


@dataclass(frozen=True)
class Blurs:
    """All Gaussian blurs of a batch: a blur of any width costs the same.

    Attributes:
        inputs: the pictures, `(B, C, h, w)`.
        spectrum: their coefficients in the cosine basis, alike.
        bases: the cosine bases of columns and rows, `(h, h)` and `(w, w)`, orthonormal, a wave per row.
        squares: the squared length of each wave's vector `(h, w)`, in radians per pixel.
    """

    inputs: Tensor
    spectrum: Tensor
    bases: tuple[Tensor, Tensor]
    squares: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> Blurs:
        """The blurs of `inputs` `(B, C, h, w)`."""
        import torch

        down, across = (torch.from_numpy(cosines(side)).to(inputs) for side in inputs.shape[-2:])
        steep, flat = (torch.pi / side * torch.arange(side).to(inputs) for side in inputs.shape[-2:])
        # Less one of its own colours, a picture of one colour has no spectrum and is exactly its own blur.
        spectrum = down @ (inputs - inputs[..., :1, :1]) @ across.T
        return cls(inputs, spectrum, (down, across), steep[:, None] ** 2 + flat**2)

    def at(self, sigma: Tensor, rows: Tensor) -> Tensor:
        """Pictures `rows` `(n,)` blurred by `sigma` `(n,)` pixels of standard deviation; by 0 it is the picture."""
        import torch

        lost = -torch.expm1(-0.5 * sigma[:, None, None, None] ** 2 * self.squares)
        down, across = self.bases
        return self.inputs[rows] - down.T @ (lost * self.spectrum[rows]) @ across


@lru_cache(maxsize=8)
def cosines(side: int) -> NDArray[np.float64]:
    """The orthonormal waves cos(pi k (i + 1/2) / side), one per row `k`: those of a signal mirrored at its borders."""
    import numpy as np

    k = np.arange(side)[:, None]
    waves = np.cos(np.pi * k * (np.arange(side) + 0.5) / side) * np.sqrt(2 / side)
    waves[0] /= np.sqrt(2)
    return waves
