"""Simple Taylor decomposition: the first-order expansion of the score around a root point, pixel by pixel.

    R_i = sum_c (x - x~)_ic * df/dx_ic,    f(x) - f(x~) = sum_i R_i + higher orders

`origin`: x~ = 0, the colour the model calls zero, with the gradient taken at the picture: gradient x input. A piecewise
linear net without biases is homogeneous, f(a x) = a f(x), so its gradient is the same all along the segment to the
origin, and the expansion is exact. `nearest`: x~ is the root found from the picture straight down the gradient (up, if
the score is negative), with the gradient taken there; it lies close, and R shows what a small change had to touch.

Measured for every picture: `completeness_gap` = |sum R - (f(x) - f(x~))| / |f(x) - f(x~)|, what higher orders hold, and
|f(x~)| / |f(x)|, as `root_gap` of a root that was searched for, zero if it is one, and as `score_at_origin` of the
origin, which is no root in nets with biases.

Bach et al.: On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation, 2015
(10.1371/journal.pone.0130140); Montavon et al.: Explaining nonlinear classification decisions with deep Taylor
decomposition, 2017 (arXiv:1512.02479).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class SimpleTaylor(Method):
    """First-order share of each pixel in the score, from a root point to the picture; signed (Bach 2015)."""

    name: ClassVar[str] = "simple-taylor"
    family: ClassVar[str] = "propagation"
    # What higher orders hold is no fault of the map, it is what the method leaves out.
    bounds: ClassVar[Mapping[str, float]] = {"completeness_gap": float("inf")}

    root: Annotated[
        Literal["origin", "nearest"],
        Option("Where the expansion starts: the colour the model calls zero, or the nearest point of score zero."),
    ] = "origin"
    steps: Annotated[int, Option("Passes in search of the nearest root.", min=1, max=1000)] = 20

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(logits=True, input_gradient=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        assert evidence.logits is not None
        scores = evidence.scores(evidence.logits)
        away, gradient, left = _origin(evidence) if self.root == "origin" else _nearest(evidence, scores, self.steps)
        relevance = (away * gradient).sum(dim=1)
        change = scores - left
        missing = relevance.sum(dim=(1, 2)) - change
        # The origin is what was asked for, whatever its score; a root that was searched for should be one.
        at_root = "score_at_origin" if self.root == "origin" else "root_gap"
        checks = {"completeness_gap": _share(missing, change), at_root: _share(left, scores)}
        return Attribution(relevance, signed=True, checks=checks)


def _origin(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
    """The way from the origin to each picture `(B, C, h, w)`, the gradient, and the score left at the origin `(B,)`."""
    import torch

    assert evidence.input_gradient is not None
    with torch.no_grad():
        # One pass of one row serves every picture: the origin is the same.
        logits = evidence.classifier.logits(torch.zeros_like(evidence.inputs[:1])).expand(len(evidence.inputs), -1)
    return evidence.inputs, evidence.input_gradient, evidence.scores(logits)


def _nearest(evidence: Evidence, scores: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `_origin`, from the root nearest to each picture, with the gradient there; `scores` `(B,)`."""
    import torch

    found = []
    for rows, real in evidence.parts():
        away, left = _search(evidence, rows, scores[rows], steps)
        gradient = evidence.score_gradient(evidence.inputs[rows] - away, rows)
        found.append([each[:real] for each in (away, gradient, left)])
    away, gradient, left = map(torch.cat, zip(*found, strict=True))
    return away, gradient, left


def _search(evidence: Evidence, rows: Tensor, scores: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The way `(n, C, h, w)` from a root to each picture of `rows (n,)`, and the score left at the root `(n,)`.

    Each picture goes straight along its own gradient, twice as far at every step until its score has changed sign, then
    halving what lies between; no farther than from a black picture to a white one. The point of the smallest score
    counts.
    """
    import torch

    assert evidence.input_gradient is not None
    inputs, gradient = evidence.inputs[rows], evidence.input_gradient[rows]
    steepness = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
    direction = gradient * (scores.sign() / steepness)[:, None, None, None]
    reach = float((evidence.classifier.colour("white") - evidence.classifier.colour("black")).norm())
    # The first step is Newton's: a linear score needs no second one.
    low, high, step = torch.zeros_like(scores), torch.full_like(scores, torch.inf), scores.abs() / steepness
    root, left = low, scores
    for _ in range(steps):
        step = step.clamp(max=reach)
        with torch.no_grad():
            there = evidence.scores(evidence.classifier.logits(inputs - step[:, None, None, None] * direction), rows)
        better, beyond = there.abs() < left.abs(), there * scores <= 0
        root, left = torch.where(better, step, root), torch.where(better, there, left)
        low, high = torch.where(beyond, low, step), torch.where(beyond, step, high)
        step = torch.where(high.isinf(), 2 * step, (low + high) / 2)
    return root[:, None, None, None] * direction, left


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`|part| / |whole|`; nothing of nothing is 0."""
    return (part / whole).abs().where(part != 0, 0)
