"""A picture as a game: its segments are the players, the class scores with only some of them seen are what they win."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, combinations
from math import comb

import torch
from torch import Tensor

from xai_cli.classifiers.classifier import Classifier

Game = Callable[[Iterable[int]], Tensor]


def quarters(size: int = 8) -> Tensor:
    """The labels `(size, size)` of `--segmentation grid --segments 4`."""
    half = torch.arange(size) * 2 // size
    return 2 * half[:, None] + half


def game_of(classifier: Classifier, picture: Tensor, fill: Tensor, labels: Tensor) -> Game:
    """The class scores `(K,)` of the picture `(C, h, w)` with all but some segments replaced by `fill`."""

    def scores(players: Iterable[int]) -> Tensor:
        seen = torch.isin(labels, torch.tensor([*players], dtype=labels.dtype))
        return classifier.logits(torch.where(seen, picture, fill)[None])[0]

    return scores


def shapley(game: Game, players: int) -> Tensor:
    """The Shapley values `(K, players)`, by the formula over all sets."""
    values = []
    for player in range(players):
        others = [other for other in range(players) if other != player]
        sets = chain.from_iterable(combinations(others, size) for size in range(players))
        values.append(
            sum((game({*some, player}) - game(some)) / (players * comb(players - 1, len(some))) for some in sets)
        )
    return torch.stack(values, dim=1)
