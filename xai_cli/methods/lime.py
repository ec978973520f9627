"""LIME: how much each segment of the picture adds to the score, by a linear model of it nearby.

    R_i = w_j of the segment j of pixel i;   min over w, c of  sum over z of k(z) (f(z) - c - w z)^2 + |w|^2

z says of each segment whether it is there (1) or hidden (0), and f(z) is the score of such a picture. The first of the
samples is the whole picture; in the rest each segment is there half of the time. Those that show more of the picture
weigh more: k(z) = sqrt(exp(-d^2 / width^2)), with the cosine distance d = 1 - sqrt(share of segments that are there).
That kernel, its width of 0.25 and the penalty are those of the authors' package. Their score is `--score probability`.

With `--top K` only the K segments with the largest weights (of a fit with a penalty of 0.01) get one, by a second fit
on these alone. The linear model need not be right: its `r2` says how far it describes the scores.

`--sampling independent` is the paper's. `paired` takes with each mask its complement, and gives both the mean of their
weights, so that what segments do in twos leaves their own weights alone; that also levels the kernel, which for more
than some ten segments is flat already, unless it is narrower than usual. The masks are rows of a Hadamard matrix whose
columns are dealt to the segments, with random signs: each alone is as random as before, but all segments, all two and
all three of them are there in every combination equally often. A quarter of the samples then gives maps of logits that
agree as well from seed to seed.

Ribeiro, Singh, Guestrin: "Why Should I Trust You?", 2016 (arXiv:1602.04938). Plackett, Burman: The Design of Optimum
Multifactorial Experiments, 1946 (doi:10.1093/biomet/33.4.305).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from xai_cli.methods.contract import Evidence
from xai_cli.methods.hadamard import balanced_masks
from xai_cli.methods.ridge import RidgeFit, ridge
from xai_cli.methods.sampling import Estimate, Tolerance, sampled
from xai_cli.methods.segmented import SegmentMethod, Segments
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

_ROUND = 100  # samples, after which `--tolerance` looks again
_SELECTING = 0.01  # the package's penalty where segments are chosen


@dataclass(frozen=True)
class Lime(SegmentMethod):
    """How much each segment adds to the score, by a linear model of it nearby; signed (Ribeiro et al. 2016)."""

    name: ClassVar[str] = "lime"
    trial: ClassVar[dict[str, Any]] = {"samples": 60, "segments": 16}

    samples: Annotated[
        int, Option("Pictures with segments hidden at random; the first is the whole picture.", min=3)
    ] = 1000
    sampling: Annotated[
        Literal["paired", "independent"],
        Option("paired takes with each mask its complement, and masks that are balanced among themselves: maps change "
               "less from seed to seed. A kernel narrower than usual wants independent."),
    ] = "paired"  # fmt: skip
    kernel_width: Annotated[
        float, Option("How fast samples lose weight with what is hidden of them; in cosine distance.", min=0.01)
    ] = 0.25
    top: Annotated[
        int | None, Option("Only so many segments get a weight, the most important ones; all by default.", min=1)
    ] = None
    tolerance: Tolerance = 0.0

    def estimates(self, evidence: Evidence, segments: Segments) -> tuple[list[tuple[Estimate, int]], dict[str, Tensor]]:
        present = [self._masks(evidence, row, count) for row, count in enumerate(segments.counts)]
        masking, checks = self.hidden(evidence, segments, present)

        def estimate(rows: Sequence[int], scores: Sequence[Tensor]) -> list[Estimate]:
            # One by one: each has segments of its own number, and its bytes must not depend on its neighbours.
            made = []
            for row, found in zip(rows, scores, strict=True):
                fit = self.fitted(present[row][: len(found)].double(), found.cpu().double())
                values, errors = (each.to(evidence.inputs) for each in (fit.coefficients, fit.errors))
                made.append(Estimate(values, errors, segments.sizes(row), {"r2": fit.r2}))
            return made

        return sampled(masking, self.tolerance, [_ROUND] * len(present), estimate), checks

    def fitted(self, masks: Tensor, scores: Tensor) -> RidgeFit:
        """The linear models of `scores` `(S, T)` by which segments are there, `masks` `(S, P)`, both float64."""
        import torch

        # Sample 0 is no draw, and a mask and its complement are one.
        groups = (torch.arange(len(masks)) + 1) // 2
        weights = (-((1 - masks.mean(dim=1).sqrt()) ** 2) / (2 * self.kernel_width**2)).exp()
        if self.sampling == "paired":
            weights = (groups.bincount(weights=weights) / groups.bincount())[groups]
        if self.top is None or self.top >= masks.shape[1]:
            return ridge(masks, scores, weights, groups)
        first = ridge(masks, scores, weights, groups, _SELECTING).coefficients
        chosen = first.abs().argsort(dim=1, descending=True, stable=True)[:, : self.top]
        fits = [
            ridge(masks[:, some], score[:, None], weights, groups) for some, score in zip(chosen, scores.T, strict=True)
        ]
        values, errors = (
            torch.zeros_like(first).scatter(1, chosen, torch.cat(each))
            for each in ([fit.coefficients for fit in fits], [fit.errors for fit in fits])
        )
        return RidgeFit(values, errors, torch.cat([fit.r2 for fit in fits]))

    def _masks(self, evidence: Evidence, row: int, count: int) -> Tensor:
        """`(samples, count)`: the masks of a picture; the n-th is the same however many there are."""
        import torch

        masks = [torch.ones(1, count)]
        while (missing := self.samples - sum(map(len, masks))) > 0:
            generator = evidence.generator(row, len(masks))
            if self.sampling == "paired":
                drawn = balanced_masks(count, generator).float()
                masks.append(torch.stack([drawn, 1 - drawn], dim=1).flatten(0, 1)[:missing])
            else:
                masks.append(torch.randint(2, (_ROUND, count), generator=generator)[:missing].float())
        return torch.cat(masks)
