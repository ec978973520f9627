"""LIME: how much each segment of the picture adds to the score, by a linear model of it nearby.

    R_i = w_j of the segment j of pixel i;   min over w, c of  sum over z of k(z) (f(z) - c - w z)^2 + |w|^2

z says of each segment whether it is there (1) or hidden (0), and f(z) is the score of such a picture. The first of the
samples is the whole picture; in the rest each segment is there half of the time. Those that show more of the picture
weigh more: k(z) = sqrt(exp(-d^2 / width^2)), with the cosine distance d = 1 - sqrt(share of segments that are there).
That kernel, its width of 0.25 and the penalty are those of the authors' package. Their score is `--score probability`.

With `--top K` only the K segments with the largest weights (of a fit with a penalty of 0.01) get one, by a second fit
on these alone. The linear model need not be right: its `r2` says how far it describes the scores.

`--sampling independent` is the paper's. `paired` takes with each mask its complement, and gives both the mean of their
weights, so that what segments do in twos leaves their own weights alone. That levels the kernel, which leaves less to
tell samples apart the more segments there are: their weights vary by 0.43 of their mean for 12 segments, by 0.23 for
50. The masks are rows of a Hadamard matrix whose columns are dealt to the segments, with random signs: each alone is as
random as before, but all segments, all two and all three of them are there in every combination equally often. On
superpixels of photographs a quarter of the samples then gives maps of logits that agree as well from seed to seed; of
probabilities it does not (over two sets of photographs with 250 a correlation of 0.72 and 0.85, the package with 1000
of 0.85 and 0.90).

What it costs: within a block of all rows, each with its complement (128 samples for 32 to 63 segments), what three
segments do together may fall wholly on a fourth. Each block deals its columns anew. Of four blocks and more, errors are
told by how these differ; of fewer by pairs, which see nothing of what fell so: those are right only on the mean of many
seeds. Where the samples are no whole blocks, these count what the penalty holds back as chance, too much where scores
are nearly linear. Errors are infinite until there are ten more pairs than segments (`independent`: samples, by weight).
With `--top` they are those of the fit on all segments: too large where it is certain which are chosen, too small where
that is chance.

Ribeiro, Singh, Guestrin: "Why Should I Trust You?", 2016 (arXiv:1602.04938). Plackett, Burman: The Design of Optimum
Multifactorial Experiments, 1946 (doi:10.1093/biomet/33.4.305).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from xai_cli.methods.contract import Evidence
from xai_cli.methods.hadamard import balanced_masks
from xai_cli.methods.ridge import Design, RidgeFit, ridge
from xai_cli.methods.sampling import Estimate, Tolerance, sampled
from xai_cli.methods.segmented import SegmentMethod, Segments
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

_BLOCKS = 4  # of so many whole ones errors are told by how they differ
_SELECTING = 0.01  # the package's penalty where segments are chosen


@dataclass(frozen=True)
class Lime(SegmentMethod):
    """How much each segment adds to the score, by a linear model of it nearby; signed (Ribeiro et al. 2016)."""

    name: ClassVar[str] = "lime"
    trial: ClassVar[dict[str, Any]] = {"samples": 60, "segments": 16}

    samples: Annotated[
        int, Option("Pictures with segments hidden at random; the first is the whole picture.", min=3, max=1_000_000)
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

    def estimates(self, evidence: Evidence, segments: Segments) -> list[Estimate]:
        present = [self._masks(evidence, row, count) for row, count in enumerate(segments.counts)]
        masking = self.hidden(evidence, segments, present)

        def estimate(rows: Sequence[int], scores: Sequence[Tensor]) -> list[Estimate]:
            # One by one: each has segments of its own number, and its bytes must not depend on its neighbours.
            made = []
            for row, found in zip(rows, scores, strict=True):
                fit = self.fitted(present[row][: len(found)].double(), found.cpu().double())
                made.append(Estimate(fit.coefficients, fit.errors, segments.sizes[row], {"r2": fit.r2}))
            return made

        return sampled(masking, self.tolerance, [self._block(count) for count in segments.counts], estimate, ends=1)

    def fitted(self, masks: Tensor, scores: Tensor) -> RidgeFit:
        """The linear models of `scores` `(S, T)` by which segments are there, `masks` `(S, P)`, both float64; sample 0
        is the whole picture.
        """
        import torch

        design = self._design(masks)
        if self.top is None or self.top >= masks.shape[1]:
            return ridge(masks, scores, design)
        every = ridge(masks, scores, design, _SELECTING)
        chosen = every.coefficients.abs().argsort(dim=1, descending=True, stable=True)[:, : self.top]
        fits = [ridge(masks[:, some], score[:, None], design) for some, score in zip(chosen, scores.T, strict=True)]
        few = torch.cat([fit.coefficients for fit in fits])
        values = torch.zeros_like(every.coefficients).scatter(1, chosen, few)
        # The errors of the few would not know that others might have been chosen.
        return RidgeFit(values, every.errors, torch.cat([fit.r2 for fit in fits]))

    def _design(self, masks: Tensor) -> Design:
        """How these masks `(S, P)`, float64, the first of the whole picture, came about and what they weigh."""
        import torch

        numbers = torch.arange(len(masks))
        weights = (-((1 - masks.mean(dim=1).sqrt()) ** 2) / (2 * self.kernel_width**2)).exp()
        if self.sampling == "independent":
            return Design(weights, numbers)
        pairs = (numbers + 1) // 2
        weights = (pairs.bincount(weights=weights) / pairs.bincount())[pairs]
        whole, rest = divmod(len(masks) - 1, block := self._block(masks.shape[1]))
        blocks = (numbers + block - 1) // block if whole >= _BLOCKS else None
        return Design(weights, pairs, blocks, balanced=rest == 0)

    def _block(self, count: int) -> int:
        """Samples that are drawn at once for so many segments; paired, all rows of the matrix and their complements."""
        return 2 << count.bit_length() if self.sampling == "paired" else 100

    def _masks(self, evidence: Evidence, row: int, count: int) -> Tensor:
        """Truth values `(samples, count)`: the masks of a picture; the n-th is the same however many there are."""
        import torch

        masks = [torch.ones(1, count, dtype=torch.bool)]
        while (missing := self.samples - sum(map(len, masks))) > 0:
            generator = evidence.generator(row, len(masks) - 1)
            if self.sampling == "paired":
                drawn = balanced_masks(count, generator)
                masks.append(torch.stack([drawn, ~drawn], dim=1).flatten(0, 1)[:missing])
            else:
                masks.append(torch.randint(2, (self._block(count), count), generator=generator)[:missing].bool())
        return torch.cat(masks)
