"""Weighted ridge regression, and how sure its coefficients are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SPARE = 10  # draws that there must be beyond the unknowns for residuals to tell what is chance


@dataclass(frozen=True)
class RidgeFit:
    """Linear models of T scores by P features.

    Attributes:
        coefficients: `(T, P)`.
        errors: `(T, P)`, their standard errors.
        r2: `(T,)`, the share of the scores' weighted variance that the model explains; 1 if they are all the same.
    """

    coefficients: Tensor
    errors: Tensor
    r2: Tensor


@dataclass(frozen=True)
class Design:
    """How n samples came about.

    Attributes:
        weights: `(n,)`.
        draws: `(n,)`, numbers what was drawn together; nothing was drawn of what has number 0.
        blocks: `(n,)`, numbers which draws were balanced among themselves, if there are enough of these to compare.
        balanced: whether all were, so that what a penalty holds back is the same whatever was drawn.
    """

    weights: Tensor
    draws: Tensor
    blocks: Tensor | None = None
    balanced: bool = False

    @property
    def effective(self) -> float:
        """How many draws of one weight are worth as much."""
        weights = self.draws.bincount(weights=self.weights)[1:]
        return float(weights.sum().square() / weights.square().sum())


def ridge(features: Tensor, scores: Tensor, design: Design, penalty: float = 1.0) -> RidgeFit:
    """The least sum of weighted squares of `scores` `(n, T)` less their model by `features` `(n, P)`, and `penalty`
    times the squared coefficients; the intercept is free.

    Errors are those of a bootstrap over groups, linearised, which needs no resampling:

        V = c * sum over groups of (d - mean d)^2,   d = (X^T W X + penalty)^-1 X^T W r   of the group

    with the residuals r (Liang, Zeger: Longitudinal data analysis using generalized linear models, 1986,
    doi:10.1093/biomet/73.1.13). Groups are the G blocks, c = G / (G - 1), or else the draws, c = N / (N - P) with the
    effective number N of them. Errors are infinite if N - P < 10.
    """
    import torch

    scores = scores - scores[0]  # those that are all the same shall give zeros, not rounding
    columns = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    weighted = columns * design.weights[:, None]
    gram, right = weighted.T @ columns, weighted.T @ scores
    ridged = gram.clone()
    ridged.diagonal()[:-1] += penalty
    inverse = torch.linalg.inv(ridged)
    coefficients = inverse @ right
    residuals = scores - columns @ coefficients
    centred = scores - design.weights @ scores / design.weights.sum()
    left, total = (design.weights @ each.square() for each in (residuals, centred))
    r2 = torch.where(total == 0, 1, 1 - left / total)

    errors = torch.full_like(coefficients[:-1], torch.inf)
    spare = design.effective - features.shape[1]
    if spare >= _SPARE:
        if design.balanced:
            residuals = scores - columns @ torch.linalg.solve(gram, right)
        groups = design.draws if design.blocks is None else design.blocks
        squares = _squares(weighted, residuals, groups, inverse[:, :-1])
        count = int(groups.max())
        factor = design.effective / spare if design.blocks is None else count / (count - 1)
        errors = (squares * factor).sqrt()
    return RidgeFit(coefficients[:-1].T, errors.T, r2)


def _squares(weighted: Tensor, residuals: Tensor, groups: Tensor, inverse: Tensor) -> Tensor:
    """`(P, T)`: the sums of the squared (d - mean d) of the groups."""
    import torch

    squares = []
    for each in residuals.T:  # one by one, for memory
        sums = weighted.new_zeros(int(groups.max()) + 1, weighted.shape[1])
        pulls = sums.index_add_(0, groups, weighted * each[:, None])[1:] @ inverse
        squares.append((pulls - pulls.mean(dim=0)).square().sum(dim=0))
    return torch.stack(squares, dim=1)
