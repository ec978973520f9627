"""Weighted ridge regression, and how sure its coefficients are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


def ridge(features: Tensor, scores: Tensor, weights: Tensor, groups: Tensor, penalty: float = 1.0) -> RidgeFit:
    """The least sum of weighted squares and `penalty` times the squared coefficients; the intercept is free.

    `features` `(n, P)`, `scores` `(n, T)`, `weights` `(n,)`; `groups` `(n,)` numbers what was drawn together, and in
    group 0 nothing was drawn. The errors are those of a bootstrap over groups, linearised, which needs no resampling:

        V = n / (n - df) * sum over groups of d d^T,   d = (X^T W X + penalty)^-1 X^T W r   of the group

    with the residuals r, and df the trace of the hat matrix (Liang, Zeger: Longitudinal data analysis using
    generalized linear models, 1986, doi:10.1093/biomet/73.1.13). Fits of resampled groups would be too far apart where
    there are few samples for so many features.
    """
    import torch

    scores = scores - scores[0]  # those that are all the same shall give zeros, not rounding
    columns = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    weighted = columns * weights[:, None]
    gram = weighted.T @ columns
    ridged = gram.clone()
    ridged.diagonal()[:-1] += penalty
    inverse = torch.linalg.inv(ridged)
    coefficients = inverse @ (weighted.T @ scores)
    residuals = scores - columns @ coefficients

    pulls = (weighted @ inverse)[:, :-1, None] * residuals[:, None]
    drawn = pulls.new_zeros(int(groups.max()) + 1, *pulls.shape[1:]).index_add_(0, groups, pulls)[1:]
    freedom = (inverse * gram).sum()
    errors = (drawn.square().sum(dim=0) * len(scores) / (len(scores) - freedom)).sqrt()

    centred = scores - weights @ scores / weights.sum()
    left, total = (weights @ each.square() for each in (residuals, centred))
    r2 = torch.where(total == 0, 1, 1 - left / total)
    return RidgeFit(coefficients[:-1].T, errors.T, r2)
