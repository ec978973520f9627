"""Integrated gradients: the share of each pixel in the change of the score from a baseline to the picture.

    R_i = sum_c (x - x0)_ic  *  integral_0^1  df/dx_ic (x0 + a (x - x0)) da

Completeness: sum_i R_i = f(x) - f(x0), up to the error of the quadrature; that error is measured for every picture as
`completeness_gap` = |sum R - (f(x) - f(x0))| / |f(x) - f(x0)|. Pixels that equal the baseline get nothing: black parts
of a picture are invisible to a black baseline.

Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks, 2017 (arXiv:1703.01365).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.baselines import made_baseline
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier

_MOST_NODES = 1000  # the nodes are eigenvalues of a matrix of that size


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """Gradients integrated from a baseline to the picture; signed, sums to the score's change (Sundararajan 2017)."""

    name: ClassVar[str] = "ig"
    family: ClassVar[str] = "gradient"

    steps: Annotated[int, Option("Gradients per picture.", min=1, max=100_000)] = 50
    baseline: Annotated[
        Literal["black", "white", "mean", "blur"],
        Option("Where the path starts: a colour, the colour the model calls zero (mean), or the blurred picture."),
    ] = "mean"
    quadrature: Annotated[
        Literal["gauss-legendre", "midpoint"], Option("How the steps are placed and weighted along the path.")
    ] = "midpoint"  # nets of kinks gain nothing from a rule made for smooth functions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quadrature == "gauss-legendre" and self.steps > _MOST_NODES:
            raise ValueError(
                f"--steps expects at most {_MOST_NODES} for gauss-legendre, found {self.steps}; "
                "--quadrature midpoint takes more"
            )

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        import torch

        inputs = evidence.inputs
        baselines = made_baseline(self.baseline, inputs, evidence.classifier)
        places, weights = (torch.from_numpy(each).to(inputs) for each in _nodes(self.quadrature, self.steps))
        integral = torch.zeros_like(inputs)
        for rows, steps, real in evidence.chunks(self.steps):
            points = torch.lerp(baselines[rows], inputs[rows], places[steps, None, None, None])
            gradient = evidence.score_gradient(points, rows) * weights[steps, None, None, None]
            integral.index_add_(0, rows[:real], gradient[:real])
        relevance = ((inputs - baselines) * integral).sum(dim=1)
        assert evidence.logits is not None
        change = evidence.scores(evidence.logits) - self._baseline_scores(evidence, baselines)
        missing = (relevance.sum(dim=(1, 2)) - change).abs()
        # A picture that is its own baseline has nothing to explain: 0 / 0 is a gap of 0.
        gap = torch.where(missing == 0, 0, missing / change.abs())
        return Attribution(relevance, signed=True, checks={"completeness_gap": gap})

    def _baseline_scores(self, evidence: Evidence, baselines: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            if self.baseline == "blur":
                return evidence.scores(evidence.classifier.logits(baselines))
            # One pass of one row serves every picture: the baseline is the same.
            return evidence.scores(evidence.classifier.logits(baselines[:1]).expand(len(baselines), -1))


@lru_cache(maxsize=4)
def _nodes(quadrature: str, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in 0..1 and weights summing to 1, both `(steps,)`."""
    import numpy as np

    if quadrature == "midpoint":
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2
