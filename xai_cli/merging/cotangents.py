"""Where the way back begins: vectors at the logits whose pulled-back squares sum to a picture's diagonal Fisher.

With p = softmax(z) and A = diag(p) - p p^T, the Fisher information of one picture is J^T A J, so its diagonal is the
sum over k of (J^T v_k)^2 for any vectors with sum_k v_k v_k^T = A. The natural ones are l_c = sqrt(p_c) (e_c - p), one
per class, of squared length w_c = p_c (1 - 2 p_c + |p|^2). Estimators whose vectors are drawn have A as the expectation
of the sum (Matena and Raffel 2022, "Merging models with Fisher-weighted averaging", take all classes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xai_cli.images.sources import seed_of
from xai_cli.merging.options import ROTATED, Estimator


def cotangents(
    logits: Tensor,
    estimator: Estimator,
    probes: int,
    keys: Sequence[str],
    seed: int,
    labels: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Vectors v_k `(B, C)`, float64 on the CPU, for logits `(B, C)`: the sum of the squares of what they give on the
    way back is (an estimate of) each picture's own diagonal Fisher.

    `expected` gives C vectors, exact; `importance` draws `probes` classes by their share of w; `eig` gives `probes - 1`
    eigen-directions of the 32 classes of largest w and one vector drawn of all the rest; `sampled` draws classes by
    their probability; these are unbiased. `empirical` takes the `labels`, and is biased. What is drawn depends on
    `seed`, the picture's key and its logits alone, and fewer draws are the first of more.
    """
    softmax = Softmax.of(logits)
    if estimator == "expected":
        for index in range(logits.shape[1]):
            yield softmax.factors(torch.full((len(logits), 1), index))[:, 0]
    elif estimator == "empirical":
        assert labels is not None, "the empirical Fisher takes labels"
        yield softmax.residuals(torch.tensor(labels)[:, None])[:, 0]
    elif estimator == "sampled":
        drawn = _drawn(softmax.p, _uniform(keys, seed, probes))
        yield from (softmax.residuals(drawn) / probes**0.5).unbind(1)
    elif estimator == "importance":
        drawn = _drawn(softmax.w, _uniform(keys, seed, probes))
        yield from _in_place_of_all(softmax.factors(drawn), softmax.w).unbind(1)
    else:
        yield from _eigen(softmax, probes - 1, _uniform(keys, seed, 1))


@dataclass(frozen=True)
class Softmax:
    """The probabilities of a batch in float64, all `(B, C)`, right to rounding also where one class is all but certain.

    Attributes:
        p: the probabilities.
        rest: 1 - p.
        w: squared lengths of the factors; of each picture they sum to 1 - |p|^2.
    """

    p: Tensor
    rest: Tensor
    w: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Softmax:
        """The softmax of logits `(B, C)`."""
        p = logits.detach().cpu().double().softmax(1)
        rest = _sum_of_others(p)
        return cls(p, rest, p * (rest.square() + _sum_of_others(p.square())))

    def residuals(self, classes: Tensor) -> Tensor:
        """The vectors e_c - p `(B, K, C)` of classes `(B, K)`."""
        own = classes[..., None]
        return -self.p[:, None].repeat(1, classes.shape[1], 1).scatter(2, own, -self.rest.gather(1, classes)[..., None])

    def factors(self, classes: Tensor) -> Tensor:
        """The vectors sqrt(p_c) (e_c - p) `(B, K, C)` of classes `(B, K)`."""
        return self.p.gather(1, classes).sqrt()[..., None] * self.residuals(classes)


def _sum_of_others(values: Tensor) -> Tensor:
    """Of each the sum of all others in its row, without the cancellation in taking the largest from the total."""
    largest = values.argmax(1, keepdim=True)
    others = values.scatter(1, largest, 0.0).sum(1, keepdim=True)
    return (others + values.gather(1, largest) - values).scatter(1, largest, others)


def _uniform(keys: Sequence[str], seed: int, count: int) -> Tensor:
    """Numbers `(B, count)` in [0, 1) that belong to the pictures."""
    sources = [torch.Generator().manual_seed(seed_of(key, seed)) for key in keys]
    return torch.stack([torch.rand(count, generator=source, dtype=torch.float64) for source in sources])


def _drawn(shares: Tensor, uniform: Tensor) -> Tensor:
    """Places `(B, K)`, drawn in proportion to shares `(B, N)`."""
    until = shares.cumsum(1)
    return torch.searchsorted(until, uniform * until[:, -1:], right=True).clamp_max(shares.shape[1] - 1)


def _in_place_of_all(drawn: Tensor, shares: Tensor) -> Tensor:
    """Vectors `(B, K, C)`, drawn by their squared lengths, made as long as stands for all that have these `shares`."""
    lengths = drawn.norm(dim=2, keepdim=True)
    # Where one class is certain to the last bit all lengths are zero.
    units = drawn / lengths.where(lengths > 0, 1.0)
    return (shares.sum(1) / drawn.shape[1]).sqrt()[:, None, None] * units


def _eigen(softmax: Softmax, directions: int, uniform: Tensor) -> Iterator[Tensor]:
    kept = softmax.w.topk(min(ROTATED, softmax.w.shape[1])).indices
    factors = softmax.factors(kept)
    # Any rotation of the factors has the same sum of squares; this one puts most of it into the fewest.
    _, axes = torch.linalg.eigh(factors @ factors.mT)
    rotated = axes.mT.flip(1) @ factors
    yield from rotated[:, :directions].unbind(1)
    if directions >= softmax.w.shape[1]:
        return
    left = rotated[:, directions:]
    # The rest are the shorter directions, and the factors of the classes that were not rotated.
    shares = torch.cat([left.square().sum(2), softmax.w.scatter(1, kept, 0.0)], 1)
    drawn = _drawn(shares, uniform)
    rest = softmax.factors((drawn - left.shape[1]).clamp_min(0))
    if left.shape[1]:
        own = left.gather(1, drawn.clamp_max(left.shape[1] - 1)[..., None].expand_as(rest))
        rest = own.where((drawn < left.shape[1])[..., None], rest)
    yield _in_place_of_all(rest, shares)[:, 0]
