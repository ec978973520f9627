"""RISE: how the score goes with the visibility of each pixel, over many random masks.

    R_i = 1 / (N p)  sum_k (f_k - mean f) m_k(i)          f_k = f(m_k x + (1 - m_k) fill),    k = 1..N

Each mask m_k is a grid of `--cells` x `--cells` cells, each there with probability p (`--keep`), enlarged bilinearly to
one cell more than the picture and cut out at a random place. Of many masks R_i is the covariance of the score with
m(i), over p: what the score is above its mean where the pixel is seen. Of a score that is linear in the pixels, that is
w (x - fill) blurred over about a cell. So a map is no sharper than the cells, and a small p shows what is enough for
the class by itself, a large one what cannot be spared.

The paper's map is  1 / (N p) sum_k f_k m_k(i) = R_i + mean f  mean_k m_k(i) / p.  What is left out here is the same
everywhere but for chance, and is most of that map's noise where the score has a large constant part; without it the
map has a sign.

Chance in a map comes mostly from the other cells that come and go with the one looked at. In `--sampling orthogonal`
masks are made in blocks of one shift from the columns of a Hadamard matrix, each cell's own column drawn and turned
around at random: every mask by itself is as likely as before, every two cells of a block are uncorrelated exactly, and
what is linear in the cells adds no noise. For logits the spread is about 0.6 of that of independent masks, as 2.5 times
the samples would make it, for probabilities a little more. Pairs of a mask and its contrary, which help where weights
are fitted, make this mean worse.

`spread` = |standard error of the map| / |map| says how much of the map is chance; the maps of two seeds have a cosine
of about 1 - spread^2, and four times the samples halve it.

Petsiuk, Das, Saenko: RISE: Randomized Input Sampling for Explanation of Black-box Models, 2018 (arXiv:1806.07421).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.contract import Attribution, Evidence, Needs
from xai_cli.methods.hadamard import balanced_masks
from xai_cli.methods.perturbation import Perturbation
from xai_cli.methods.sampling import Estimate, Tolerance, checks_of, sampled
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from xai_cli.classifiers.classifier import Classifier

_FIRST = 4  # blocks before which their spread is too much chance itself to stop at


@dataclass(frozen=True)
class Masks:
    """The random masks of a batch, as small tables.

    Attributes:
        present: `(B, N, cells, cells)`, truth values: which cells are there.
        shifts: `(B, N, 2)`: where the picture begins in the enlarged grid, down and across.
        down, across: `(shifts, cells, h)` and `(shifts, cells, w)`: the weight of each cell in each row, or column, of
            pixels, for every shift.
    """

    present: Tensor
    shifts: Tensor
    down: Tensor
    across: Tensor

    def visible(self, rows: Tensor, samples: Tensor) -> Tensor:
        """What is seen `(n, 1, h, w)` in samples of pictures."""
        down, across = self._weights(self.shifts[rows, samples])
        return (down.mT @ self.present[rows, samples].to(down) @ across)[:, None]

    def weighted(self, row: int, samples: slice, weights: Tensor, keep: float) -> Tensor:
        """The sums `(T, h, w)` of some masks of a picture, each less `keep`, by `weights` `(n, T)`, on the CPU.

        Those of one shift are added up as grids and enlarged together.
        """
        shifts, numbers = self.shifts[row, samples].cpu().unique(dim=0, return_inverse=True)
        grids = self.present[row, samples].to(weights) - keep
        sums = weights.new_zeros(len(shifts), weights.shape[1], *grids.shape[1:])
        sums.index_add_(0, numbers, weights[:, :, None, None] * grids[:, None])
        down, across = self._weights(shifts)
        rows = down.mT[:, None] @ sums.to(down)
        return rows.movedim(0, 2).flatten(2) @ across.flatten(0, 1)

    def _weights(self, shifts: Tensor) -> tuple[Tensor, Tensor]:
        down, across = shifts.unbind(dim=1)
        return self.down[down], self.across[across]


@dataclass(frozen=True)
class Rise(Perturbation):
    """How the score goes with the visibility of each pixel, over random masks; signed (Petsiuk 2018)."""

    name: ClassVar[str] = "rise"
    trial: ClassVar[Mapping[str, object]] = {"cells": 3, "samples": 32}

    samples: Annotated[
        int,
        Option("Random masks per picture, rounded up to whole blocks, two or more: of 64 with 7 cells.", min=2,
               max=1_000_000),
    ] = 2048  # fmt: skip
    cells: Annotated[int, Option("Cells of a mask along each side.", min=2, max=32)] = 7
    keep: Annotated[float, Option("Probability that a cell is seen.", min=0.01, max=0.99)] = 0.5
    sampling: Annotated[
        Literal["orthogonal", "independent"],
        Option("How masks are drawn: in blocks in which no two cells are correlated, which leaves less noise, or each "
               "by itself."),
    ] = "orthogonal"  # fmt: skip
    tolerance: Tolerance = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling == "orthogonal" and self.keep != 0.5:
            raise ValueError(f"--sampling orthogonal expects --keep 0.5, found {self.keep}; add --sampling independent")

    def needs(self, classifier: Classifier) -> Needs:
        side = min(classifier.preprocessing.size)
        if self.cells > side:
            raise ValueError(f"--cells expects at most the {side} pixels of the model's input, found {self.cells}")
        return super().needs(classifier)

    def explain(self, evidence: Evidence) -> list[Attribution]:
        import torch

        masks, sides = self.masks(evidence), evidence.inputs.shape[-2:]
        masking = self.masking(evidence, masks.visible, [masks.present.shape[1]] * len(evidence.inputs))

        def estimates(rows: Sequence[int], scores: Sequence[Tensor]) -> list[Estimate]:
            return [self._estimate(masks, row, each.cpu()) for row, each in zip(rows, scores, strict=True)]

        found = sampled(masking, self.tolerance, [self._block] * len(evidence.inputs), estimates, first=_FIRST)
        return [
            Attribution(
                torch.stack([each.values[rank].view(sides) for each in found]),
                signed=True,
                checks=checks_of(found, rank),
            )
            for rank in range(len(evidence.everyone))
        ]

    def masks(self, evidence: Evidence) -> Masks:
        """The masks of all pictures of the batch, each from its own seeds; fewer are the first of more."""
        import torch

        down, across = (_enlarging(self.cells, side).to(evidence.inputs) for side in evidence.inputs.shape[-2:])
        blocks = max(2, ceil(self.samples / self._block))
        present, shifts = [], []
        for row in range(len(evidence.inputs)):
            for block in range(blocks):
                generator = evidence.generator(row, block)
                present.append(self._cells(generator))
                # Cells are uncorrelated only among masks of one shift.
                count = 1 if self.sampling == "orthogonal" else self._block
                drawn = [torch.randint(len(side), (count,), generator=generator) for side in (down, across)]
                shifts.append(torch.stack(drawn, dim=1).expand(self._block, 2))
        made = [torch.stack(each).unflatten(0, (-1, blocks)).flatten(1, 2) for each in (present, shifts)]
        return Masks(made[0].to(down.device), made[1].to(down.device), down, across)

    @property
    def _block(self) -> int:
        """Masks drawn at once: the least power of 2 that leaves each cell a column of its own in Hadamard's matrix."""
        return 1 << (self.cells**2).bit_length()

    def _cells(self, generator: Generator) -> Tensor:
        """Which cells are there `(block, cells, cells)` in one block of masks."""
        import torch

        shape, cells = (self._block, self.cells, self.cells), self.cells**2
        if self.sampling == "independent":
            return torch.rand(shape, generator=generator) < self.keep
        return balanced_masks(cells, generator).view(shape)

    def _estimate(self, masks: Masks, row: int, scores: Tensor) -> Estimate:
        """The maps of a picture for all targets from its first scores `(n, T)`; each block gives a map of its own."""
        import torch

        # Less the first score, because the mean of equal numbers is not always one of them.
        weights = scores - scores[:1]
        weights = (weights - weights.mean(dim=0)) / (self.keep * self._block)
        blocks = len(scores) // self._block
        total, squares = masks.down.new_zeros(()), masks.down.new_zeros(())
        for block, its in enumerate(weights.split(self._block)):
            samples = slice(block * self._block, (block + 1) * self._block)
            part = masks.weighted(row, samples, its, self.keep).flatten(1)
            total, squares = total + part, squares + part.square()
        values = total / blocks
        errors = ((squares / blocks - values.square()).clamp_min(0) / (blocks - 1)).sqrt()
        return Estimate(values, errors, torch.ones_like(values[0]))


def _enlarging(cells: int, side: int) -> Tensor:
    """`(shifts, cells, side)`: the weight of each cell in each pixel along a side, for every shift of the picture in a
    grid that is enlarged to one cell more.
    """
    import torch
    from torch.nn.functional import interpolate

    cell = ceil(side / cells)
    enlarged = interpolate(torch.eye(cells)[None], size=(cells + 1) * cell, mode="linear", align_corners=False)[0]
    return enlarged.unfold(1, side, 1).movedim(1, 0)
