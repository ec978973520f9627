"""The merge itself: one tensor after the other, as the plan says, so that memory holds one tensor of each model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xai_cli.merging.buffers import all_equal, largest, mean_beside, mixture_variance
from xai_cli.merging.formula import Rule, average, taking_part
from xai_cli.merging.merge_options import are_coefficients
from xai_cli.merging.plan import Entry, Plan
from xai_cli.merging.weights import Weights

_PIECE = 1 << 16


class Apart:
    """How far the models' merged parameters lie from the target's, summed while they are merged.

    Args:
        target: the target, counted from 1 like `--target`.
    """

    def __init__(self, target: int) -> None:
        self._target = target - 1
        self._size = 0.0
        self._squares: dict[int, float] = {}

    def add(self, tensors: dict[int, Tensor]) -> None:
        """Counts one tensor of each model, by its place from 0; nothing if the target has none."""
        if self._target not in tensors:
            return
        pieces = {model: tensor.reshape(-1).split(_PIECE) for model, tensor in tensors.items()}
        for place, own in enumerate(pieces.pop(self._target)):
            self._size += float(own.dot(own))
            for model, others in pieces.items():
                step = others[place] - own
                self._squares[model] = self._squares.get(model, 0.0) + float(step.dot(step))

    def distances(self) -> dict[int, float]:
        """`|theta_i - theta_target| / |theta_target|` of each other model, by its number from 1, over the tensors
        counted so far.
        """
        return {model + 1: math.sqrt(square / (self._size or 1)) for model, square in sorted(self._squares.items())}

    def notes(self, paths: Sequence[Path]) -> list[str]:
        """A sentence for each model that lies further off than the target is long."""
        return [
            f"{paths[model - 1]} lies {distance:.3g} times the target's length away from it; checkpoints that share no "
            "ancestor do not merge well"
            for model, distance in self.distances().items()
            if distance > 1
        ]


def merged(
    plan: Plan, weights: Sequence[Weights], rule: Rule, coefficients: Sequence[float], apart: Apart | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the merged file by name, in the plan's shapes and types, one at a time.

    Args:
        plan: made from the same weights.
        weights: the checkpoints.
        rule: how parameters are merged.
        coefficients: one per checkpoint; only their ratios matter, and one of 0 takes no part.
        apart: what counts distances on the way.

    Raises:
        ValueError: a tensor holds NaN or infinity, or tables of whole numbers differ; it names tensor and file.
    """
    if not are_coefficients(coefficients, len(weights)):
        raise ValueError(
            f"a merge of {len(weights)} checkpoints expects as many coefficients of 0 or more, not all 0, "
            f"found {tuple(coefficients)}"
        )
    job = _Job(weights, rule, coefficients, apart)
    for entry in plan.entries:
        if entry.treatment != "leave out":
            yield entry.name, job.tensor(entry)


class _Job:
    def __init__(
        self, weights: Sequence[Weights], rule: Rule, coefficients: Sequence[float], apart: Apart | None
    ) -> None:
        self._weights, self._rule, self._coefficients, self._apart = weights, rule, coefficients, apart

    def tensor(self, entry: Entry) -> Tensor:
        shares = taking_part(self._coefficients, entry.models)
        match entry.treatment:
            case "copy":
                found = self._read(entry.name, entry.models[0])
            case "largest":
                found = largest([self._read(entry.name, model) for model in shares])
            case "equal":
                found = self._equal(entry)
            case "mixture":
                found = mixture_variance(
                    [self._read(mean_beside(entry.name), model) for model in shares],
                    [self._read(entry.name, model) for model in shares],
                    list(shares.values()),
                )
            case _:
                found = self._ruled(entry, shares)
        result = found.to(entry.dtype)
        assert result.shape == entry.shape, f"{entry.name}: {tuple(result.shape)}, planned {entry.shape}"
        if not _finite(result):
            for model in entry.models:
                self._read(entry.name, model)  # refuses what is not finite before it is merged
            raise ValueError(f"{entry.name} leaves the range of {entry.dtype}; give a --target of a wider type")
        return result

    def _ruled(self, entry: Entry, shares: dict[int, float]) -> Tensor:
        """What the rule (or the plain mean) makes of the tensors, in float32; in float64 where a model has that."""
        # Rows that only a model of coefficient 0 has are copied from it.
        by_rows = any(fit is not None and fit.rows is not None for fit in entry.fits)
        models = entry.models if by_rows else tuple(shares)
        wide = any(self._weights[model].dtype(entry.name) == torch.float64 for model in models)
        tensors = {}
        for model in models:
            fit = entry.fits[model]
            # NaN and infinity stay in any mean, and are looked for there; but a fit may leave rows out.
            tensor = self._weights[model].tensor(entry.name) if fit is None else self._read(entry.name, model)
            tensor = tensor.to(torch.float64 if wide else torch.float32)
            tensors[model] = tensor if fit is None else fit.weights(tensor)
        if self._apart is not None and entry.treatment == "merge" and not by_rows:
            self._apart.add(tensors)
        # A rule finds its statistics by a model's place: who takes no part keeps its place, with the weight 0.
        placed = [tensors.get(model, tensors[models[0]]) for model in range(len(self._weights))]
        parts = [shares.get(model, 0.0) for model in range(len(self._weights))]
        if entry.treatment == "merge":
            return self._rule(entry.name, placed, parts, entry.fits)
        return average(placed, parts, entry.fits)

    def _equal(self, entry: Entry) -> Tensor:
        tensors = [self._read(entry.name, model) for model in entry.models]
        for model, tensor in zip(entry.models, tensors, strict=True):
            if not all_equal([tensors[0], tensor]):
                raise ValueError(
                    f"{entry.name} holds whole numbers that differ between {self._weights[entry.models[0]].path} and "
                    f"{self._weights[model].path}; merge checkpoints of one architecture and size"
                )
        return tensors[0]

    def _read(self, name: str, model: int) -> Tensor:
        tensor = self._weights[model].tensor(name)
        if not _finite(tensor):
            raise ValueError(
                f"{self._weights[model].path}: {name} holds NaN or infinity, expected finite numbers; leave this "
                "checkpoint out or take an earlier one"
            )
        return tensor


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    try:
        low, high = tensor.aminmax()  # one pass and no copy; NaN wins
    except (NotImplementedError, RuntimeError):  # 8-bit types have no order
        low, high = tensor.float().aminmax()
    return math.isfinite(low) and math.isfinite(high)
