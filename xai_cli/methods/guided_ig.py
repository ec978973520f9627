"""Guided integrated gradients: the way from a baseline to the picture that puts off what the score minds most.

    R_i = sum_c  integral of df/dx_ic along the path  x0 -> x,   every value x_ic going from x0_ic to x_ic

In each of `--steps` steps the whole goes the same part of the way (in L1), but of the values only the share
`--fraction` with the smallest |df/dx| moves, and more of them only if that is not enough; none gets further than
`--max-distance` of the way ahead of the straight line or behind it. So less of the map comes from stretches where the
gradient is large by accident. With a fraction of 1 or a distance of 0 it is the straight line of integrated gradients.

The gradient of each move is that before it, in its middle and after it, by Simpson's rule. The published algorithm
takes the one before, by which the values were chosen because it was small: that sum misses the score's change
altogether (by about its own size, on a SqueezeNet and photographs), however many steps there are.

Completeness: sum_i R_i = f(x) - f(x0), up to an error that is measured for every picture as `completeness_gap` =
|sum R - (f(x) - f(x0))| / |f(x) - f(x0)|. The path seeks out where the gradient changes, so the gap falls slowly with
the steps, and is larger than that of a straight line.

Kapishnikov, Venugopalan, Avci, Wedin, Terry, Bolukbasi: Guided Integrated Gradients: An Adaptive Path Method for
Removing Noise, 2021 (arXiv:2106.09788).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.baselines import made_baseline
from xai_cli.methods.compared import completeness_gap
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class GuidedIntegratedGradients(Method):
    """Gradients integrated along a path that puts off large ones; signed (Kapishnikov 2021)."""

    name: ClassVar[str] = "guided-ig"
    family: ClassVar[str] = "gradient"

    steps: Annotated[int, Option("Steps of the path; each needs two gradients.", min=1, max=100_000)] = 100
    fraction: Annotated[
        float, Option("Share of the colour values that moves at a time, those with the smallest gradients.",
                      min=0.01, max=1),
    ] = 0.25  # fmt: skip
    max_distance: Annotated[
        float, Option("How far a value may leave the straight line, as share of its way.", min=0, max=1)
    ] = 0.02
    baseline: Annotated[
        Literal["black", "white", "mean", "blur"],
        Option("Where the path starts: a colour, the colour the model calls zero (mean), or the blurred picture."),
    ] = "mean"

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        import torch

        assert evidence.logits is not None
        baselines = made_baseline(self.baseline, evidence.inputs, evidence.classifier)
        maps, begins = [], []
        for rows, real in evidence.parts():
            with torch.no_grad():
                begins.append(evidence.scores(evidence.classifier.logits(baselines[rows]), rows)[:real])
            maps.append(self._integral(evidence, baselines[rows], rows)[:real])
        relevance = torch.cat(maps)
        change = evidence.scores(evidence.logits) - torch.cat(begins)
        return Attribution(relevance, signed=True, checks={"completeness_gap": completeness_gap(relevance, change)})

    def _integral(self, evidence: Evidence, begin: Tensor, rows: Tensor) -> Tensor:
        """The maps `(n, h, w)` of pictures `rows`, each along its own path from `begin` `(n, C, h, w)`."""
        import torch

        end = evidence.inputs[rows]
        length = (end - begin).abs()
        # A picture that is its own baseline has no way to go: 0 / 0 is 0.
        weights = length / length.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(length.dtype).tiny)
        gone, integral = torch.zeros_like(end), torch.zeros_like(end)
        gradient = evidence.score_gradient(begin, rows)
        for step in range(1, self.steps + 1):
            moved = self._moved(gone.flatten(1), gradient.flatten(1), weights.flatten(1), step / self.steps)
            moved = moved.view_as(end)
            middle = evidence.score_gradient(torch.lerp(begin, end, (gone + moved) / 2), rows)
            after = evidence.score_gradient(torch.lerp(begin, end, moved), rows)
            integral += (moved - gone) * (gradient + 4 * middle + after) / 6
            gone, gradient = moved, after
        return ((end - begin) * integral).sum(dim=1)

    def _moved(self, gone: Tensor, gradient: Tensor, weights: Tensor, goal: float) -> Tensor:
        """How far each value has come `(n, C h w)`, 0 to 1, when their mean by `weights` is `goal`, from where each has
        `gone`.
        """
        import torch

        low, high = max(goal - self.max_distance, 0.0), gone.new_tensor(min(goal + self.max_distance, 1.0))
        gone, cost = gone.clamp(min=low), gradient.abs().masked_fill(weights == 0, torch.inf)
        rank = 1 + int(self.fraction * (cost.shape[1] - 1))
        pending = torch.ones_like(gone[:, :1], dtype=torch.bool)
        while True:
            left = goal - (weights * gone).sum(dim=1, keepdim=True)
            pending = pending & (left > 0)
            if not pending.any():
                return gone
            cost = cost.masked_fill(gone >= high, torch.inf)
            chosen = (cost <= cost.kthvalue(rank, dim=1, keepdim=True).values) & cost.isfinite() & pending
            room = (weights * (high - gone) * chosen).sum(dim=1, keepdim=True)
            gone = torch.where(chosen, torch.lerp(gone, high, (left / room).clamp(max=1)), gone)
            pending = pending & (left > room) & chosen.any(dim=1, keepdim=True)
