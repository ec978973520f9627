"""Shapley values of the segments by walks from nothing to the whole picture.

    R_i = mean over the orders of the segments of  f(those up to i) - f(those before i)

Each walk shows one segment after the other, in a random order; a segment gets what the score rises as it comes. Every
order is walked in reverse as well, where a segment that came early comes late. The mean over all orders is the Shapley
value, the only fair share of f(x) - f(all hidden) if what segments do together is to be divided, too. The values of
every walk, and so of their mean, add up to that difference exactly. Errors are those of the mean over the pairs of
walks. Two walks show 2 (segments - 1) masked pictures, all begin and end with the same two.

Of up to 7 segments no order is drawn twice, not in reverse either: with `--permutations` of half of all that there are,
or more, the values are exact.

What a value means depends on what hidden segments become (--fill): against another fill the score has other shares.

Castro, Gomez, Tejada: Polynomial calculation of the Shapley value based on sampling, 2009
(doi:10.1016/j.cor.2008.04.004); Strumbelj, Kononenko: An Efficient Explanation of Individual Classifications using
Game Theory, 2010; reversed orders: Mitchell, Cooper, Frank, Holmes: Sampling Permutations for Shapley Value Estimation,
2022 (arXiv:2104.12199).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial, inf
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Evidence
from xai_cli.methods.sampling import Estimate, Tolerance, sampled
from xai_cli.methods.segmented import SegmentMethod, Segments, with_ends
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 7  # segments, of which all orders are written down
_FIRST = 4  # pairs of walks before which their spread is too much chance itself to stop at


@dataclass(frozen=True)
class ShapleySampling(SegmentMethod):
    """Shapley values of the segments, what each adds on random walks to the picture; signed (Castro et al. 2009)."""

    name: ClassVar[str] = "shapley-sampling"
    trial: ClassVar[Mapping[str, object]] = {"permutations": 2, "segments": 8}

    permutations: Annotated[
        int,
        Option(
            "Random orders of the segments, each walked in reverse as well; all that there are if fewer.",
            min=2,
            max=100_000,
        ),
    ] = 10
    tolerance: Tolerance = 0.0

    def estimates(self, evidence: Evidence, segments: Segments) -> list[Estimate]:
        ranks = [_ranks(evidence, row, count, self.permutations) for row, count in enumerate(segments.counts)]
        pairs = [2 * (count - 1) for count in segments.counts]
        usual = 2 + 2 * self.permutations * max(1, self.segments - 1)
        masking = self.hidden(evidence, segments, [with_ends(_walked(each)) for each in ranks], usual)

        def estimate(rows: Sequence[int], scores: Sequence[Tensor]) -> list[Estimate]:
            return [_estimate(ranks[row], each, segments.sizes[row]) for row, each in zip(rows, scores, strict=True)]

        return sampled(masking, self.tolerance, pairs, estimate, first=_FIRST, ends=2)


def _ranks(evidence: Evidence, row: int, segments: int, pairs: int) -> Tensor:
    """When each segment comes `(pairs, 2, P)`, there and back; of fewer pairs the first of more."""
    import torch

    generator = evidence.generator(row)
    if segments <= _FEW:
        every = torch.tensor([*permutations(range(segments))])
        every = every[every[:, 0] <= every[:, -1]]  # the others are these in reverse
        there = every[torch.randperm(len(every), generator=generator)[:pairs]]
    else:
        there = torch.rand(pairs, segments, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
    return torch.stack([there, segments - 1 - there], dim=1)


def _walked(ranks: Tensor) -> Tensor:
    """Which segments are there `(permutations * 2 * (P - 1), P)` at each step of each walk between its ends."""
    import torch

    steps = torch.arange(1, ranks.shape[2])[:, None]
    return (ranks[:, :, None] < steps).flatten(end_dim=2)


def _estimate(ranks: Tensor, scores: Tensor, sizes: Tensor) -> Estimate:
    """The mean of what each segment adds on the first walks, from the scores `(2 + S, T)` at both ends and there."""
    import torch

    steps, targets = ranks.shape[2] - 1, scores.shape[1]
    first, last, middle = scores.cpu().double().tensor_split([1, 2])
    # To one segment there is no step between, and so no number of walks to be told from the scores.
    middle = middle.view(len(middle) // (2 * steps) if steps else len(ranks), 2, steps, targets)
    begin, end = (each.expand(len(middle), 2, 1, targets) for each in (first, last))
    rises = torch.cat([begin, middle, end], dim=2).diff(dim=2)
    added = rises.gather(2, ranks[: len(rises), ..., None].expand_as(rises)).mean(dim=1)
    # Of pairs that are not put back the last leaves no chance.
    every = max(1, factorial(steps + 1) // 2) if steps < _FEW else inf
    left = 1 - len(added) / every
    error = added.std(dim=0) * (left / len(added)) ** 0.5 if left else torch.zeros_like(added[0])
    return Estimate(added.mean(dim=0).T, error.T, sizes)
