"""A way from a baseline to a picture, looked at in nodes: the score tells between which of them more are needed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Node:
    """What a forward and a backward pass tell of one point of the way.

    Attributes:
        place: where it lies, from 0, the baseline, to 1, the picture.
        score: of the point.
        shares: of each pixel in the slope of the score along the way, `(h, w)`.
        slope: the sum of the shares, per whole way.
    """

    place: float
    score: float
    shares: Tensor
    slope: float


@dataclass
class Path:
    """A way by its nodes, in the order of their places, and the scores where it begins and ends."""

    begin: float
    end: float
    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Takes one more node, at its place."""
        insort(self.nodes, node, key=lambda each: each.place)

    def integral(self) -> Tensor:
        """The shares along the whole way `(h, w)`, each node standing for what lies nearest to it: of nodes that are
        evenly placed this is the midpoint rule.
        """
        import torch

        borders = [0.0, *((before.place + after.place) / 2 for before, after in pairwise(self.nodes)), 1.0]
        total = torch.zeros_like(self.nodes[0].shares)
        for node, (left, right) in zip(self.nodes, pairwise(borders), strict=True):
            total.add_(node.shares, alpha=right - left)
        return total

    def parts(self) -> Iterator[tuple[float, float]]:
        """Of each part of the way between two neighbours among nodes and ends: what the integral has there too much or
        too little, which is known because the score is, and its middle.
        """
        places = [0.0, *(node.place for node in self.nodes), 1.0]
        scores = [self.begin, *(node.score for node in self.nodes), self.end]
        slopes = [node.slope for node in (self.nodes[0], *self.nodes, self.nodes[-1])]
        for i, j in pairwise(range(len(places))):
            change = (places[j] - places[i]) * (slopes[i] + slopes[j]) / 2
            yield abs(scores[j] - scores[i] - change), (places[i] + places[j]) / 2


def worst(paths: Sequence[Path], most: int) -> list[tuple[int, float]]:
    """Where more nodes are needed: path and place of the middles of those parts, a quarter of all, that have the
    largest errors; fewer if there would be more than `most` nodes.
    """
    parts = [(error, number, middle) for number, path in enumerate(paths) for error, middle in path.parts()]
    parts.sort(key=lambda part: -part[0])
    room = most - sum(len(path.nodes) for path in paths)
    return [(number, middle) for _, number, middle in parts[: min(ceil(len(parts) / 4), room)]]
