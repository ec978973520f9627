"""Whether maps have their positions where the picture has them: what moves when a patch is pasted into one quadrant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_cli import find_method
from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.targets import Target


def quadrant_shares(classifier: Classifier, names: Sequence[str]) -> dict[str, Tensor]:
    """For each method `(4, 4)`: of what a patch in each quadrant (row) moves in the maps of all classes, the share that
    lies in each quadrant (column), both from the upper left by row. One forward pass serves all methods and classes.

    A level that rises everywhere, as by attention to the patch from all over a net with random weights, moves nothing.
    """
    layer = classifier.feature_layer().name
    methods = {name: find_method(name)(relu=False) for name in names}
    passed = plain_pass(classifier, _pictures(classifier.preprocessing.size[0]), Needs(layers=(layer,), logits=True))
    assert passed.logits is not None
    moved = {name: torch.zeros(4, 4) for name in names}
    classes = min(passed.logits.shape[1], 10)
    for evidence in passed.evidences([[Target(index)] * 5 for index in range(classes)], chunk=5):
        for name, method in methods.items():
            moved[name] += _moved(method.attribute(evidence).relevance)
    return {name: each / each.sum(dim=1, keepdim=True) for name, each in moved.items()}


def _pictures(side: int) -> Tensor:
    """A grey picture and, for each quadrant, one with noise there, off its borders `(5, 3, side, side)`."""
    half, patch = side // 2, side * 3 // 8
    margin = (half - patch) // 2
    noise = torch.randn(3, patch, patch, generator=torch.Generator().manual_seed(3))
    pictures = torch.zeros(5, 3, side, side)
    for quadrant, picture in enumerate(pictures[1:]):
        top, left = (margin + (side - half) * at for at in divmod(quadrant, 2))
        picture[:, top : top + patch, left : left + patch] = noise
    return pictures


def _moved(maps: Tensor) -> Tensor:
    """How much each of four maps differs from the first `(1 + 4, h, w)` in each quadrant `(4, 4)`."""
    contrast = maps - maps.mean(dim=(1, 2), keepdim=True)
    change = (contrast[1:] - contrast[:1]).abs()
    upper, lower = change.tensor_split(2, dim=1)
    return torch.stack([part.sum(dim=(1, 2)) for half in (upper, lower) for part in half.tensor_split(2, dim=2)], dim=1)
