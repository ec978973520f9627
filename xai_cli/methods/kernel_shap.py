"""Shapley values of the segments, by a linear model of the score on pictures of which some segments are hidden.

    R = argmin over r of  sum_z w(z) (f(z) - f(all hidden) - sum_{i in z} r_i)^2,  sum_i r_i = f(x) - f(all hidden)
    w(z) = (P - 1) / (C(P, |z|) |z| (P - |z|))

f(z) is the score of the picture with only the segments z of all P seen. Over all 2^P - 2 sets z the minimum is the
Shapley values, exactly: they are taken if they are no more than `--samples`. Else sizes |z| are drawn as w has them,
then sets of that size, each with its complement, all of one weight. The constraint holds exactly in either case, so
that R adds up to f(x) - f(all hidden). Errors are those of drawing other pairs, linearised as those of LIME.

A set z and its complement together say only  f(z) - f(complement) ~ sum_i s_i r_i,  s_i = 1 in z, -1 outside: this is
what is fitted. P - 1 pairs of which none follows from the others tell all values, with fewer what is not told is
divided equally; errors want one pair more, and are infinite before. What a value means depends on what hidden segments
become (--fill).

Lundberg, Lee: A Unified Approach to Interpreting Model Predictions, 2017 (arXiv:1705.07874); sets in pairs: Covert,
Lee: Improving KernelSHAP: Practical Shapley Value Estimation via Linear Regression, 2021 (arXiv:2012.01536).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, comb
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Evidence
from xai_cli.methods.sampling import Estimate, Tolerance, sampled
from xai_cli.methods.segmented import SegmentMethod, Segments, with_ends
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Generator, Tensor

_FIRST = 4  # samples per segment, before which their spread is too much chance itself to stop at
_RIDGE = 1e-12  # of the largest that an eigenvalue can be, so that what is not known becomes zero


@dataclass(frozen=True)
class KernelShap(SegmentMethod):
    """Shapley values of the segments by a weighted linear model of the score; signed (Lundberg and Lee 2017)."""

    name: ClassVar[str] = "kernel-shap"
    trial: ClassVar[Mapping[str, object]] = {"samples": 32, "segments": 8}

    samples: Annotated[
        int,
        Option("Masked pictures, in pairs, beside the two ends; all that there are if fewer.", min=2, max=1_000_000),
    ] = 1000
    tolerance: Tolerance = 0.0

    def estimates(self, evidence: Evidence, segments: Segments) -> list[Estimate]:
        designs = [self._design(evidence, row, count) for row, count in enumerate(segments.counts)]
        masking = self.hidden(evidence, segments, [with_ends(each.present) for each in designs], 2 + self.samples)

        def estimate(rows: Sequence[int], scores: Sequence[Tensor]) -> list[Estimate]:
            return [
                designs[row].estimate(each[2:], (each[1] - each[0]).cpu().double(), segments.sizes[row])
                for row, each in zip(rows, scores, strict=True)
            ]

        # All sets say something only together; those that are drawn come in twos.
        blocks = [2 * (len(each.signs) if each.complete else ceil(each.signs.shape[1] / 2)) for each in designs]
        return sampled(masking, self.tolerance, blocks, estimate, first=_FIRST, ends=2)

    def _design(self, evidence: Evidence, row: int, segments: int) -> Design:
        # Beyond 62 the number of sets is no number of samples that anyone could ask for.
        if segments <= 62 and 2**segments - 2 <= self.samples:
            return all_pairs(segments)
        return drawn_pairs(segments, self.samples // 2, evidence.generator(row))


@dataclass(frozen=True)
class Design:
    """Pairs of a set of segments and its complement.

    Attributes:
        signs: `(n, P)` float64, 1 for segments of the set, -1 for those of its complement.
        weights: `(n,)`.
        complete: whether these are all pairs that there are.
    """

    signs: Tensor
    weights: Tensor
    complete: bool

    @property
    def present(self) -> Tensor:
        """`(2 n, P)`, which segments are there in each sample: a set, its complement, the next set..."""
        import torch

        return torch.stack([self.signs > 0, self.signs < 0], dim=1).flatten(end_dim=1)

    def estimate(self, scores: Tensor, change: Tensor, sizes: Tensor) -> Estimate:
        """The values `(T, P)` that add up to `change` `(T,)`, from the scores `(S, T)` of the first samples."""
        import torch

        scores = scores.cpu().double()
        differences = scores[0::2] - scores[1::2]
        signs, weights = self.signs[: len(differences)], self.weights[: len(differences)]
        # What is left when all segments have equal shares: values that add up to zero.
        means = signs.mean(dim=1, keepdim=True)
        signs, left = signs - means, differences - means * change
        # Of each pair what it adds to the values, per unit of what they leave of it unexplained.
        pulls = _solved(signs.T @ (weights[:, None] * signs), (weights[:, None] * signs).T)
        values = pulls @ left
        errors = torch.zeros_like(values) if self.complete else _errors(signs, pulls, left - signs @ values)
        return Estimate((values + change / len(values)).T, errors.T, sizes)


def _errors(signs: Tensor, pulls: Tensor, residuals: Tensor) -> Tensor:
    """The standard errors `(P, T)` of values from pairs that were drawn, infinite as long as they cannot be known."""
    import torch

    # A pair that was drawn before, either way round, says nothing new.
    pairs, free = len((signs * signs[:, :1].sign()).unique(dim=0)), len(pulls) - 1
    spare = pairs - free
    if spare < 1 or torch.linalg.matrix_rank(signs) < free:
        return residuals.new_full((len(pulls), residuals.shape[1]), torch.inf)
    return (pulls.square() @ residuals.square() * pairs / spare).sqrt()


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    """The least `(P, T)` that add up to zero and solve the equations as well as any."""
    import torch

    scale = gram.trace().clamp(min=torch.finfo(gram.dtype).tiny)
    # Of equal values the equations say nothing: they are held at zero.
    held = gram + scale * (_RIDGE * torch.eye(len(gram), dtype=gram.dtype) + 1 / len(gram))
    solution = torch.linalg.solve(held, right)
    return solution - solution.mean(dim=0)


def all_pairs(segments: int) -> Design:
    """All sets of segments and their complements, each pair once, weighted by the Shapley kernel."""
    import torch

    # The first segment is always in the set, and the rest of it counts up in binary; the full set is none.
    numbers = torch.arange(2 ** (segments - 1) - 1)[:, None]
    rest = numbers >> torch.arange(segments - 1) & 1
    present = torch.cat([torch.ones_like(numbers), rest], dim=1)
    kernel = [1 / (comb(segments, size) * size * (segments - size)) for size in range(1, segments)]
    weights = torch.tensor(kernel, dtype=torch.float64)[present.sum(dim=1) - 1]
    return Design(2.0 * present.double() - 1, weights, complete=True)


def drawn_pairs(segments: int, pairs: int, generator: Generator) -> Design:
    """Pairs drawn as the Shapley kernel has them, all of one weight; of fewer pairs the first of more."""
    import torch

    numbers = torch.rand(pairs, 1 + segments, generator=generator, dtype=torch.float64)
    sizes = torch.arange(1, segments, dtype=torch.float64)
    shares = (1 / (sizes * (segments - sizes))).cumsum(dim=0)
    drawn = 1 + torch.searchsorted(shares, numbers[:, :1] * shares[-1], right=True)
    present = numbers[:, 1:].argsort(dim=1).argsort(dim=1) < drawn
    return Design(2.0 * present.double() - 1, torch.ones(pairs, dtype=torch.float64), complete=False)
