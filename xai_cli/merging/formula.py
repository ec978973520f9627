"""One tensor of a merge, from the same tensor of every model.

    theta* = sum_i w_i theta_i / sum_i w_i,    w_i = lambda_i F_i / n_i

with coefficients `lambda_i`, diagonal Fishers `F_i` and normalisers `n_i`. It is computed as a running mean, one model
after the other:

    theta* <- theta* + r_i (theta_i - theta*),    r_i = w_i / (w_1 + ... + w_i)

so that equal tensors come out bit for bit, and so does a model that takes part alone; every entry lies between the
smallest and the largest of the models'.

M. Matena and C. Raffel, "Merging Models with Fisher-Weighted Averaging" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from xai_cli.merging.statistics import Statistics

Normalizer = Literal["l2", "trace", "none"]

# Entries at a time: what is computed beside the tensors stays within a core's cache.
_PIECE = 1 << 16
_NOTHING = 1e-100
# What a model without any information weighs beside the others, whose weights are about 1: nothing, but not 0 / 0.
_LEAST = 1e-30
_FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Fit:
    """How one model's tensor comes into the merged shape."""

    weights: Callable[[Tensor], Tensor]
    statistics: Callable[[Tensor], Tensor]
    """The same for its Fisher; never negative."""
    rows: Tensor | None = None
    """Which rows of the merged tensor the model has, (rows,) of bool; None: all."""


class Rule(Protocol):
    """A way to merge one tensor, which reads what statistics it needs by itself."""

    def __call__(
        self, name: str, tensors: Sequence[Tensor], coefficients: Sequence[float], fits: Sequence[Fit | None]
    ) -> Tensor:
        """The merged tensor, from every model's: float32 (or float64), all in the merged shape. A model whose
        coefficient is 0 takes no part.
        """
        ...


@dataclass(frozen=True)
class _Part:
    """Rows of a tensor (None: all) in which the same models take part, and their shares, which sum to 1."""

    rows: Tensor | None
    models: Sequence[int]
    shares: Sequence[float]

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """These rows of the models that take part."""
        return [tensors[model] if self.rows is None else tensors[model][self.rows] for model in self.models]


def taking_part(coefficients: Sequence[float], owners: Collection[int]) -> dict[int, float]:
    """Shares that sum to 1 of those `owners` of a tensor whose coefficient is not 0; equal shares of all if there are
    none.
    """
    largest = max(coefficients[model] for model in owners)
    if not largest:
        return dict.fromkeys(owners, 1 / len(owners))
    # Divided by the largest first: numbers near the end of the range have no finite sum. What is next to nothing beside
    # it is nothing, or its products with a Fisher would be.
    scaled = {model: coefficients[model] / largest for model in owners if coefficients[model] / largest > _NOTHING}
    return {model: share / math.fsum(scaled.values()) for model, share in scaled.items()}


def average(tensors: Sequence[Tensor], coefficients: Sequence[float], fits: Sequence[Fit | None]) -> Tensor:
    """The mean of the tensors, weighted by the coefficients."""

    def merged(part: _Part) -> Tensor:
        sums = accumulate(part.shares)
        ratios = [share / total for share, total in zip(part.shares, sums, strict=True)][1:]
        return _mean(part.of(tensors), lambda _: ratios)

    return _assembled(merged, _parts(coefficients, fits))


class Average:
    """The plain mean as a rule, weighted by the coefficients."""

    def __call__(
        self, name: str, tensors: Sequence[Tensor], coefficients: Sequence[float], fits: Sequence[Fit | None]
    ) -> Tensor:
        return average(tensors, coefficients, fits)


def restricted(statistics: Sequence[Statistics], names: Collection[str]) -> list[Statistics]:
    """The same Fishers, with mean, norm and trace over those of the named tensors that all of them hold.

    What else stands in a file, a head that is not merged or parameters that others lack, has no part in the balance
    between models. A file that holds these tensors alone is not read.

    Raises ValueError if they hold none of the names in common, or one is zero in all of these tensors.
    """
    common = frozenset(names).intersection(*(each.weights.names for each in statistics))
    if not common:
        raise ValueError(
            f"{' and '.join(str(each.weights.path) for each in statistics)} expected Fishers of the parameters that "
            "are merged, found none that all of them hold; make them with the same --params, or type --method average"
        )
    found = [_restricted(each, common) for each in statistics]
    for each in found:
        if each.about.norm == 0:
            raise ValueError(
                f"{each.weights.path} expected a Fisher of what is merged, found 0 in all of it, which would leave its "
                "checkpoint out of the merge; make it of other pictures, or type --method average"
            )
    return found


def _restricted(statistics: Statistics, names: Collection[str]) -> Statistics:
    weights = statistics.weights
    if len(weights.names) == len(names):
        return statistics
    trace = squares = 0.0
    entries = 0
    for name in weights.names:
        if name in names:
            fisher = weights.tensor(name)
            trace += float(fisher.sum(dtype=torch.float64))
            squares += float(fisher.norm(dtype=torch.float64)) ** 2
            entries += fisher.numel()
    about = replace(statistics.about, mean=trace / max(entries, 1), norm=math.sqrt(squares), trace=trace)
    return replace(statistics, about=about)


class FisherMean:
    """The mean weighted by every model's diagonal Fisher.

    A Fisher is divided by its L2 norm or its sum (or by nothing), and lifted to `floor` times its mean, all three as
    its file says or over what is merged (`restricted`). Where all models lie below their floor nobody knows, and the
    plain mean is taken; also for tensors that have no Fisher in one of the models. A common factor of all Fishers or of
    all coefficients changes nothing.
    """

    def __init__(self, statistics: Sequence[Statistics], normalize: Normalizer = "l2", floor: float = 1e-6) -> None:
        self._statistics = statistics
        self._names = [frozenset(each.weights.names) for each in statistics]
        self._floors = [floor * each.about.mean for each in statistics]
        divisors = [{"l2": each.about.norm, "trace": each.about.trace, "none": 1.0}[normalize] for each in statistics]
        # A Fisher that is zero everywhere has no norm to divide by, and no weight.
        self._factors = [1 / each if each > 0 else 0.0 for each in divisors]
        self._seen, self._floored = [0] * len(statistics), [0] * len(statistics)

    @property
    def floored(self) -> tuple[float, ...]:
        """The share, 0 to 1, of each model's entries seen so far that lay at or below its floor."""
        return tuple(low / max(all_, 1) for low, all_ in zip(self._floored, self._seen, strict=True))

    def __call__(
        self, name: str, tensors: Sequence[Tensor], coefficients: Sequence[float], fits: Sequence[Fit | None]
    ) -> Tensor:
        """The merged tensor. Raises ValueError if a Fisher does not fit, is negative, infinite or NaN."""
        parts = list(_parts(coefficients, fits))
        models = sorted({model for part in parts for model in part.models})
        if any(name not in self._names[model] for model in models):
            return average(tensors, coefficients, fits)
        fishers = {model: self._fisher(name, model, fits[model], tensors[model].shape) for model in models}

        def merged(part: _Part) -> Tensor:
            rows = [fishers[model] if part.rows is None else fishers[model][part.rows] for model in part.models]
            flat, factors = [fisher.reshape(-1) for fisher in rows], self._scaled(part)
            dtype = tensors[0].dtype
            return _mean(
                part.of(tensors),
                lambda piece: self._ratios(name, part, factors, [fisher[piece].to(dtype) for fisher in flat]),
            )

        return _assembled(merged, parts)

    def _fisher(self, name: str, model: int, fit: Fit | None, shape: torch.Size) -> Tensor:
        weights = self._statistics[model].weights
        fisher = weights.tensor(name)
        if fit is not None:
            fisher = fit.statistics(fisher)
        if fisher.shape != shape:
            raise ValueError(
                f"{weights.path} holds {name} as {tuple(fisher.shape)}, expected {tuple(shape)} as in the checkpoint; "
                "give the file that xai fisher made of this checkpoint"
            )
        return fisher

    def _scaled(self, part: _Part) -> list[float]:
        """What each Fisher is multiplied by, so that the largest of the models' mean weights is 1: whatever the unit of
        the Fishers, weights are numbers that float32 holds. The factors themselves may lie outside its range.
        """
        factors = [share * self._factors[model] for model, share in zip(part.models, part.shares, strict=True)]
        means = [self._statistics[model].about.mean for model in part.models]
        unit = max(factor * mean for factor, mean in zip(factors, means, strict=True))
        return [factor / (unit or 1.0) for factor in factors]

    def _ratios(self, name: str, part: _Part, factors: Sequence[float], fishers: Sequence[Tensor]) -> Iterator[Tensor]:
        """What each model but the first weighs in one piece, divided by the sum of its weight and those before it; what
        is floored is counted.
        """
        weights, low = [], []
        for model, share, factor, fisher in zip(part.models, part.shares, factors, fishers, strict=True):
            floor = self._floors[model]
            self._check(name, model, fisher)
            low.append((fisher <= floor).numpy())  # whose counting is several times as fast
            weights.append(_times(fisher, factor).clamp_(min=max(floor * factor, share * _LEAST)))
        counts = [int(np.count_nonzero(each)) for each in low]
        for model, count in zip(part.models, counts, strict=True):
            self._floored[model] += count
            self._seen[model] += len(fishers[0])
        if all(counts) and (nobody := np.logical_and.reduce(low)).any():
            for weight, share in zip(weights, part.shares, strict=True):
                weight.masked_fill_(torch.from_numpy(nobody), share)
        total, *others = weights
        for weight in others:
            total += weight
            yield weight.div_(total)

    def _check(self, name: str, model: int, fisher: Tensor) -> None:
        low, high = fisher.aminmax()
        if not 0 <= float(low) <= float(high) < math.inf:
            raise ValueError(
                f"{self._statistics[model].weights.path}: {name} holds numbers that are no Fisher information "
                "(negative, infinite or NaN); estimate it again with xai fisher"
            )


def _times(fisher: Tensor, factor: float) -> Tensor:
    """The product, which float32 holds, also where it does not hold the factor."""
    if _FLOAT32.tiny <= factor <= _FLOAT32.max:
        return fisher.mul(factor)
    root = math.sqrt(factor)
    return fisher.mul(root).mul_(root)


def _parts(coefficients: Sequence[float], fits: Sequence[Fit | None]) -> Iterator[_Part]:
    """The tensor whole; or, where some models lack rows, the rows of each set of models."""
    has = [None if fit is None else fit.rows for fit in fits]
    known = next((rows for rows in has if rows is not None), None)
    if known is None:
        shares = taking_part(coefficients, range(len(fits)))
        yield _Part(None, list(shares), list(shares.values()))
        return
    owned = torch.stack([torch.ones_like(known) if rows is None else rows for rows in has], dim=1)
    for owners in owned.unique(dim=0):
        shares = taking_part(coefficients, owners.nonzero().flatten().tolist())
        yield _Part((owned == owners).all(dim=1).nonzero().flatten(), list(shares), list(shares.values()))


def _assembled(merged: Callable[[_Part], Tensor], parts: Iterator[_Part] | list[_Part]) -> Tensor:
    found = [(part.rows, merged(part)) for part in parts]
    if found[0][0] is None:
        return found[0][1]
    tensor = found[0][1].new_empty(sum(len(rows) for _, rows in found), *found[0][1].shape[1:])
    for places, rows in found:
        tensor[places] = rows
    return tensor


def _mean(tensors: Sequence[Tensor], ratios: Callable[[slice], Iterable[float | Tensor]]) -> Tensor:
    """The running mean of the tensors in their type. `ratios` says for a piece of entries how far to go, 0 to 1, from
    the mean of the tensors so far towards each of all but the first.
    """
    first, *others = (tensor.reshape(-1) for tensor in tensors)
    if not others:
        return tensors[0]
    merged = torch.from_numpy(np.empty_like(first.numpy()))  # in huge pages, which NumPy asks for
    for start in range(0, len(merged), _PIECE):
        piece = slice(start, start + _PIECE)
        mean = first[piece]
        for other, ratio in zip(others, ratios(piece), strict=True):
            # Which never leaves the range of the two, however it rounds.
            mean = torch.lerp(mean, other[piece], ratio, out=merged[piece])
    return merged.reshape(tensors[0].shape)
