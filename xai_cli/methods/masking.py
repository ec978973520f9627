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

_COMPARED = 32  # samples on which bfloat16 is tried
_AGREEMENT = 0.99  # rank correlation that it must have there


@dataclass(frozen=True)
class Masking:
    """How the pictures of a batch are hidden and scored, for all T targets at once.

    Attributes:
        visible: what is seen in each sample.
        fill: what hidden pixels become.
        counts: how many samples there are of each picture, `B` numbers.
        rows: how many a pass has.
        score: the logit, the probability, or the logit less the largest other one; with a contrast the difference.
        reduced: `(B,)`, which pictures are computed in bfloat16; none if it is None.
    """

    evidence: Evidence
    visible: Visible
    fill: Fill
    counts: Sequence[int]
    rows: int
    score: Score = "logit"
    reduced: Tensor | None = None

    def first(self, rows: Sequence[int], stop: int, start: int = 0) -> Tensor:
        """The scores `(len(rows), stop - start, T)` of these pictures in samples `start` to `stop`."""
        import torch

        return torch.stack(self.of(rows, [torch.arange(start, stop)] * len(rows)))

    def of(self, rows: Sequence[int], samples: Sequence[Tensor]) -> list[Tensor]:
        """The scores `(S_b, T)` of each of these pictures in its own `samples[b]` `(S_b,)`."""
        import torch

        device, counts = self.evidence.inputs.device, [len(each) for each in samples]
        pictures = torch.tensor(rows, device=device).repeat_interleave(torch.tensor(counts, device=device))
        if not len(pictures):
            return [self.evidence.inputs.new_empty(0, len(self.evidence.everyone)) for _ in rows]
        return [*self.scores(pictures, torch.cat([*samples]).to(device)).split(counts)]

    def ends(self) -> tuple[Tensor, Tensor]:
        """The scores `(B, T)` of the pictures with all hidden, and with nothing hidden: of passes like all others, so
        that a sample that hides nothing is told from the picture by nothing.
        """
        import torch

        rows = range(len(self.evidence.inputs))
        seen = torch.arange(2.0, device=self.evidence.inputs.device).view(2, 1, 1, 1)
        seen = seen.expand(-1, -1, *self.evidence.inputs.shape[2:])
        nothing, everything = replace(self, visible=lambda _, samples: seen[samples]).first(rows, 2).unbind(dim=1)
        return nothing, everything

    def whole(self) -> Tensor:
        """The scores `(B, T)` of the pictures as they are."""
        import torch

        assert self.evidence.logits is not None
        rows = torch.arange(len(self.evidence.inputs), device=self.evidence.inputs.device)
        scores = self._scored(self.evidence.logits, rows)
        if self.reduced is not None and self.reduced.any():
            # Differences of two scores want both to be rounded alike.
            scores[self.reduced] = self.ends()[1][self.reduced]
        return scores

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

    def in_bfloat16(self) -> tuple[Masking, Tensor]:
        """The same in bfloat16 for the pictures that allow it, and how well it agrees with float32 on each, `(B,)`.

        That is the rank correlation of the scores of some of the samples, of all targets the least; where it is below
        0.99, float32 stays.
        """
        import torch

        inputs = self.evidence.inputs
        tried = [torch.linspace(0, count - 1, min(count, _COMPARED)).long() for count in self.counts]
        every = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
        scores = (replace(self, reduced=reduced).of(range(len(inputs)), tried) for reduced in (None, every))
        pairs = zip(*scores, strict=True)
        agreement = torch.stack([rank_correlation(exact.T, rounded.T).amin() for exact, rounded in pairs])
        return replace(self, reduced=agreement >= _AGREEMENT), agreement


def taken(pictures: Tensor, rows: Tensor) -> Tensor:
    """`pictures[rows]`; not copied if `rows` `(n,)` name one picture only, as in most passes."""
    # On a GPU the copy is nothing, and to look at the rows is to wait for it.
    if rows.device.type == "cpu" and bool((rows == rows[0]).all()):
        return pictures[rows[0]].expand(len(rows), *pictures.shape[1:])
    return pictures[rows]


def rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension, equal numbers in their order; 1 of a single number."""
    import torch

    ranks = torch.stack([left, right]).argsort(dim=-1, stable=True).argsort(dim=-1).to(left.dtype)
    ranks = ranks - ranks.mean(dim=-1, keepdim=True)
    products = (ranks[0] * ranks[1]).sum(dim=-1)
    lengths = ranks.square().sum(dim=-1).prod(dim=0).sqrt()
    return torch.where(lengths == 0, 1, products / lengths)
