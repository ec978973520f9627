"""The mask engine: pictures of which parts are hidden, several to a pass, and the scores that they leave.

A method says what is visible in each sample, from small tables on the device; the engine packs pairs (picture, sample)
of all pictures into full passes, hides, and gives the scores of every target. Nothing is differentiated, so that the
model may be any function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from xai_cli.methods.contract import Evidence, score_of

if TYPE_CHECKING:
    from torch import Tensor

Visible = Callable[["Tensor", "Tensor"], "Tensor"]
"""`(rows (n,), samples (n,)) -> (n, 1, h, w)`: the share of each pixel, 0..1, that is seen in a sample of a picture."""
Fill = Callable[["Tensor", "Tensor"], "Tensor"]
"""`(rows (n,), visible (n, 1, h, w)) -> (n, C, h, w)`: what stands where nothing is seen."""
Score = Literal["logit", "probability", "margin"]

Precision = Literal["float32", "bfloat16"]

_AGREEMENT = 0.99  # rank correlation that maps in bfloat16 must have with those in float32


@dataclass(frozen=True)
class Masking:
    """How the pictures of a batch are hidden and scored, for all T targets at once.

    Attributes:
        visible: what is seen in each sample.
        fill: what hidden pixels become.
        counts: how many samples there are of each picture, `B` numbers.
        rows: how many a pass has.
        score: the logit, the probability, or the logit less the largest other one; with a contrast the difference.
        precision: what is asked for; bfloat16 only where `settled` finds that it does.
        reduced: `(B,)`, which pictures are computed in bfloat16; none if it is None.
    """

    evidence: Evidence
    visible: Visible
    fill: Fill
    counts: Sequence[int]
    rows: int
    score: Score = "logit"
    precision: Precision = "float32"
    reduced: Tensor | None = None

    def of(self, rows: Sequence[int], samples: Sequence[Tensor]) -> list[Tensor]:
        """The scores `(S_b, T)` of each of these pictures in its own `samples[b]` `(S_b,)`."""
        import torch

        device, counts = self.evidence.inputs.device, [len(each) for each in samples]
        pictures = torch.tensor(rows, device=device).repeat_interleave(torch.tensor(counts, device=device))
        if not len(pictures):
            return [self.evidence.inputs.new_empty(0, len(self.evidence.everyone)) for _ in rows]
        return [*self.scores(pictures, torch.cat([*samples]).to(device)).split(counts)]

    def scores(self, rows: Tensor, samples: Tensor) -> Tensor:
        """The scores `(N, T)` of pairs of picture and sample, both `(N,)`."""
        if self.reduced is None:
            return self._passed(rows, samples)
        found = self.evidence.inputs.new_empty(len(rows), len(self.evidence.everyone))
        for half in (False, True):
            chosen = self.reduced[rows] == half
            if chosen.any():
                found[chosen] = self._passed(rows[chosen], samples[chosen], half=half)
        return found

    def _passed(self, rows: Tensor, samples: Tensor, *, half: bool = False) -> Tensor:
        import torch

        inputs, classifier = self.evidence.inputs, self.evidence.classifier
        classifier = classifier.in_dtype(torch.bfloat16) if half else classifier
        # One mask for all channels is ten times as fast to apply where each channel lies in one piece; and memory that
        # is given back after each pass costs the model, which asks for it again, more than the masking itself.
        planes = inputs.contiguous()
        mixed = planes.new_empty(self.rows, *planes.shape[1:])
        channels_last = inputs.is_contiguous(memory_format=torch.channels_last)
        points = mixed.to(memory_format=torch.channels_last) if channels_last else mixed
        found = inputs.new_empty(len(rows), len(self.evidence.everyone))
        done = 0
        with torch.inference_mode():
            for pictures, chosen, real in self.evidence.packed(rows, samples, self.rows):
                visible = self.visible(pictures, chosen).to(inputs.dtype)
                torch.lerp(self.fill(pictures, visible), taken(planes, pictures), visible, out=mixed)
                logits = classifier.logits(points.copy_(mixed))
                found[done : done + real] = self._scored(logits, pictures)[:real]
                done += real
        return found

    def _scored(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The score `(n, T)` of every target from class scores `(n, K)`."""
        import torch

        if self.score == "probability":
            logits = logits.softmax(dim=1)
        columns = []
        for targets, contrasts in self.evidence.everyone:
            scores = score_of(logits, targets[rows], None if contrasts is None else contrasts[rows])
            if self.score == "margin" and contrasts is None:
                scores = scores - logits.scatter(1, targets[rows, None], -torch.inf).amax(dim=1)
            columns.append(scores)
        return torch.stack(columns, dim=1).to(self.evidence.inputs.dtype)

    def settled(
        self, tried: Sequence[Tensor], maps: Callable[[int, Tensor], Tensor]
    ) -> tuple[Masking, list[Tensor], Tensor | None]:
        """The same with the precision of every picture settled; its scores `(S_b, T)` in samples `tried[b]`; and, if
        bfloat16 was asked for, how well that agrees with float32 `(B,)`.

        That is the rank correlation of what `maps` makes of picture b and these scores, `(T, P)`, the least of all
        targets; where it is below 0.99, float32 stays.
        """
        import torch

        rows = range(len(tried))
        exact = self.of(rows, tried)
        if self.precision == "float32":
            return self, exact, None
        every = torch.ones(len(tried), dtype=torch.bool, device=self.evidence.inputs.device)
        rounded = replace(self, reduced=every).of(rows, tried)
        pairs = [[maps(row, scores[row]) for scores in (exact, rounded)] for row in rows]
        agreement = torch.stack([rank_correlation(*pair).amin() for pair in pairs])
        reduced = (agreement >= _AGREEMENT).to(every.device)
        scores = [rounded[row] if reduced[row] else exact[row] for row in rows]
        return replace(self, reduced=reduced), scores, agreement


def taken(pictures: Tensor, rows: Tensor) -> Tensor:
    """`pictures[rows]`; not copied if `rows` `(n,)` name one picture only, as in most passes."""
    # On a GPU the copy is nothing, and to look at the rows is to wait for it.
    if rows.device.type == "cpu" and bool((rows == rows[0]).all()):
        return pictures[rows[0]].expand(len(rows), *pictures.shape[1:])
    return pictures[rows]


def rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's rank correlation `(T,)` of the rows of two tensors `(T, P)`; equal numbers share their rank.

    It is 1 if both rows are the same everywhere, 0 if one of them is.
    """
    import torch

    one, other = (torch.stack([_ranks(row) for row in rows]) for rows in (left, right))
    products, lengths = (one * other).sum(dim=1), one.norm(dim=1) * other.norm(dim=1)
    same = (one == 0).all(dim=1) & (other == 0).all(dim=1)
    return torch.where(lengths > 0, products / lengths, same.to(products))


def _ranks(values: Tensor) -> Tensor:
    """The ranks of numbers `(P,)`, with mean 0; those that are equal share theirs."""
    _, places, counts = values.cpu().unique(return_inverse=True, return_counts=True)
    after = counts.cumsum(dim=0).double()
    return (after - counts / 2 - len(values) / 2)[places]
