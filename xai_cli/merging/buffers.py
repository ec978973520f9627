"""Tensors that are counted or measured, not trained: the statistics of batch norm, counters, index tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, VARIANCE, COUNTER = "running_mean", "running_var", "num_batches_tracked"


def mean_beside(variance: str) -> str:
    """The name of the running mean that belongs to a running variance."""
    return variance.removesuffix(VARIANCE) + MEAN


def mixture_variance(means: Sequence[Tensor], variances: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The variance `(C,)` of the mixture of the models' activations, never negative: `sum_i s_i (var_i + mean_i^2) -
    mean^2` with shares `s_i` that sum to 1, in float64; equal statistics come out as they are.
    """
    # Around the mixture's mean, so that nothing cancels.
    centre = means[0].double() + sum(
        share * (mean.double() - means[0].double()) for mean, share in zip(means, shares, strict=True)
    )
    within = variances[0].double() + sum(
        share * (variance.double() - variances[0].double()) for variance, share in zip(variances, shares, strict=True)
    )
    between = sum(share * (mean.double() - centre).square() for mean, share in zip(means, shares, strict=True))
    return (within + between).clamp(min=0)


def largest(counters: Sequence[Tensor]) -> Tensor:
    """The largest of the models' counters, int64: the number of batches that the longest training has seen."""
    return torch.stack([counter.long() for counter in counters]).amax(dim=0)


def all_equal(tensors: Sequence[Tensor]) -> bool:
    """Whether the stored whole numbers or booleans are the same in all models, whatever their width."""
    first = tensors[0]
    return all(
        torch.equal(tensor, first) if tensor.dtype == first.dtype else tensor.tolist() == first.tolist()
        for tensor in tensors[1:]
    )
