"""Integrated gradients: the share of each pixel in the change of the score from a baseline to the picture.

    R_i = sum_c (x - x0)_ic  *  integral_0^1  df/dx_ic (x0 + a (x - x0)) da

Completeness: sum_i R_i = f(x) - f(x0), up to the error of the quadrature; that error is measured for every picture as
`completeness_gap` = |sum R - (f(x) - f(x0))| / |f(x) - f(x0)|, and `gradient_evaluations` says what the map took.

Only a picture whose gap is over `--tolerance` gets more than `--steps` gradients, and where its path needs them. The
score is known at every step, so what the quadrature misses between two steps is known as well: the quarter of all
parts where that is most is halved, again and again, each gradient standing for what lies nearest to it, until the gap
of the map is small enough. Nothing is scaled to add up. A picture whose score hardly changes, or jumps, may never get
there: it stops at 500 gradients, and its gap says so.

Pixels that equal the baseline get nothing: black parts of a picture are invisible to a black baseline. Of several
baselines (noise, a folder) R and the change of the score are means: expected gradients.

Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks, 2017 (arXiv:1703.01365); expected gradients: Erion,
Janizek, Sturmfels, Lundberg, Lee: Improving Performance of Deep Learning Models with Axiomatic Attribution Priors and
Expected Gradients, 2021 (arXiv:1906.10670).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import cycle, islice, product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.baselines import Baselines
from xai_cli.methods.compared import ComparedMethod, completeness_gap
from xai_cli.methods.contract import Attribution, Evidence, Needs
from xai_cli.methods.path import Node, Path, worst
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier

_MOST_NODES = 1000  # the nodes of gauss-legendre are eigenvalues of a matrix of that size
_MOST_GRADIENTS = 500  # for one picture, unless it begins with more: a map of each is kept until its gap is closed

Point = tuple[int, int, float]
"""Picture, number of the baseline, place on the way between them."""


@dataclass(frozen=True)
class IntegratedGradients(ComparedMethod):
    """Gradients integrated from a baseline to the picture; signed, sums to the score's change (Sundararajan 2017)."""

    name: ClassVar[str] = "ig"
    family: ClassVar[str] = "gradient"
    bounds: ClassVar[Mapping[str, float]] = {"completeness_gap": 0.01}

    steps: Annotated[int, Option("Gradients per picture and baseline, before any more.", min=1, max=100_000)] = 16
    tolerance: Annotated[
        float,
        Option("Largest completeness gap: pictures over it get more gradients, 500 at most. With 0 none gets more.",
               min=0),
    ] = 0.01  # fmt: skip
    quadrature: Annotated[
        Literal["gauss-legendre", "midpoint"],
        Option("How --steps are placed and weighted along the path; the further ones halve its worst parts."),
    ] = "midpoint"  # nets of kinks gain nothing from a rule made for smooth functions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quadrature == "gauss-legendre" and self.steps > _MOST_NODES:
            raise ValueError(
                f"--steps expects at most {_MOST_NODES} for gauss-legendre, found {self.steps}; "
                "--quadrature midpoint takes more"
            )

    def needs(self, classifier: Classifier) -> Needs:
        self.read_baselines(classifier)
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        assert evidence.logits is not None
        baselines = self.baselines_of(evidence)
        begins, ends = _baseline_scores(evidence, baselines), evidence.scores(evidence.logits)
        change = ends - begins.mean(dim=1)
        relevance, pictures = self._first(evidence, baselines, begins, ends)
        gap = completeness_gap(relevance, change)
        gradients = gap.new_full(gap.shape, self.steps * baselines.count)
        size = evidence.rows_per_pass(self.steps * baselines.count)
        while pictures := {
            row: paths
            for row, paths in pictures.items()
            if gap[row] > self.tolerance and gradients[row] < _MOST_GRADIENTS
        }:
            # Not all at once, because a map of each gradient is kept until the gap is closed.
            some = dict(islice(pictures.items(), max(size // 2, 1)))
            points = [(row, *point) for row, paths in some.items() for point in worst(paths, _MOST_GRADIENTS)]
            for (row, number, _), node in _nodes(evidence, baselines, points, size):
                some[row][number].add(node)
            for row, paths in some.items():
                relevance[row] = sum(path.integral() for path in paths) / baselines.count
                gradients[row] = sum(len(path.nodes) for path in paths)
            gap = completeness_gap(relevance, change)
        checks = {"completeness_gap": gap, "gradient_evaluations": gradients}
        return Attribution(relevance, signed=True, checks=checks, notes=baselines.notes)

    def _first(
        self, evidence: Evidence, baselines: Baselines, begins: Tensor, ends: Tensor
    ) -> tuple[Tensor, dict[int, list[Path]]]:
        """The maps `(B, h, w)` of `steps` gradients, and the paths of each picture if any may be added."""
        import torch

        relevance = torch.zeros_like(evidence.inputs[:, 0])
        ways = enumerate(zip(begins.tolist(), ends.tolist(), strict=True))
        pictures = {row: [Path(begin, end) for begin in several] for row, (several, end) in ways}
        kept = self.tolerance > 0 and self.steps * baselines.count < _MOST_GRADIENTS
        places, weights = _quadrature(self.quadrature, self.steps)
        points = product(pictures, range(baselines.count), places)
        nodes = _nodes(evidence, baselines, points, evidence.rows_per_pass(self.steps * baselines.count))
        for ((row, number, _), node), weight in zip(nodes, cycle(weights), strict=False):
            relevance[row].add_(node.shares, alpha=weight / baselines.count)
            if kept:
                pictures[row][number].add(node)
        return relevance, pictures if kept else {}


def _baseline_scores(evidence: Evidence, baselines: Baselines) -> Tensor:
    """The scores of the baselines, `(B, S)`."""
    import torch

    pictures, count = len(evidence.inputs), baselines.count
    # What serves every picture is passed once, by itself.
    asked = replace(evidence, inputs=evidence.inputs[:1], chunk=1) if baselines.common else evidence
    with torch.no_grad():
        passed = [
            evidence.classifier.logits(baselines.at(rows, numbers))[:real]
            for rows, numbers, real in asked.chunks(count)
        ]
    logits = torch.cat(passed)
    rows = torch.arange(pictures, device=logits.device).repeat_interleave(count)
    return evidence.scores(logits.repeat(len(rows) // len(logits), 1), rows).view(pictures, count)


def _nodes(
    evidence: Evidence, baselines: Baselines, points: Iterable[Point], size: int
) -> Iterator[tuple[Point, Node]]:
    """What each point shows, in their order; passes are full chunks, the last filled up with copies."""
    import torch

    inputs, points = evidence.inputs, iter(points)
    while part := list(islice(points, size)):
        filled = part + part[-1:] * (size - len(part))
        rows = torch.tensor([row for row, _, _ in filled], device=inputs.device)
        numbers = torch.tensor([number for _, number, _ in filled], device=inputs.device)
        places = inputs.new_tensor([place for _, _, place in filled])[:, None, None, None]
        begin, end = baselines.at(rows, numbers), inputs[rows]
        logits, gradient = evidence.logits_and_gradient(torch.lerp(begin, end, places), rows)
        scores = evidence.scores(logits, rows)
        shares = (gradient * (end - begin)).sum(dim=1)
        slopes = shares.sum(dim=(1, 2)).tolist()
        for point, score, share, slope in zip(part, scores.tolist(), shares, slopes, strict=False):
            yield point, Node(point[2], score, share, slope)


@lru_cache(maxsize=4)
def _quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Places in 0..1 and weights that add up to 1, `steps` of each."""
    import numpy as np

    if rule == "midpoint":
        return [(step + 0.5) / steps for step in range(steps)], [1 / steps] * steps
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
