"""New running statistics for the batch-norm layers of merged weights, from pictures without labels.

The statistics of a merge of two models are those of neither: activations shrink where the models disagree. Here each
layer normalises by the statistics of the batch at hand, and those of all batches together become its running ones.

torch's own way (`momentum=None`) averages the batches' variances. That counts a small last batch as much as the
others, and leaves out how far the batches' means lie apart: of a folder sorted by class most of the variance may be
missing. Here every value counts the same and the variance is that of all values, as if they were one batch. What comes
*into* a deeper layer still depends on the batches, through the layers before: give batches of mixed classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> int:
    """How many batch-norm layers got the mean and the (unbiased) variance of all that came into them.

    One pass in which only these layers work as in training; no module's mode is changed, and where it fails nothing at
    all. A last batch of one picture joins the one before. Layers that no picture reaches keep what they have.

    Raises:
        ValueError: the model has no batch-norm layers, there are no pictures, or a statistic is NaN or infinite.
    """
    layers = {name: layer for name, layer in module.named_modules() if _has_statistics(layer)}
    if not layers:
        raise ValueError(
            "new batch-norm statistics expect a model with batch norm, and this one has none; leave out "
            "--recalibrate-bn"
        )
    totals = {id(layer.running_mean): _Total() for layer in layers.values()}
    count = 0
    with torch.no_grad(), _ByBatch(totals):
        for inputs in _of_two_or_more(batches):
            module(inputs)
            count += 1
    reached = {name: layer for name, layer in layers.items() if totals[id(layer.running_mean)].values}
    if not reached:
        raise ValueError("new batch-norm statistics expect pictures that reach batch-norm layers, found none")
    found = {name: totals[id(layer.running_mean)].statistics() for name, layer in reached.items()}
    for name, statistics in found.items():
        if not all(each.isfinite().all() for each in statistics):
            raise ValueError(f"what comes into the batch norm {name!r} is NaN or infinite; check the merged weights")
    for name, (mean, variance) in found.items():
        _set(reached[name], mean, variance, count)
    return len(found)


class _Total:
    """Mean and variance of all values of each channel, added batch by batch in float64."""

    def __init__(self) -> None:
        self.values = 0
        self._mean = self._deviation = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Adds the values of `(B, C, ...)`."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = (each.cpu().double() for each in torch.var_mean(x, axes, correction=0))
        values = x.numel() // x.shape[1]
        # Chan, Golub & LeVeque (1983): no squares of large means are subtracted.
        apart, share = mean - self._mean, values / (self.values + values)
        self._deviation = self._deviation + values * variance + apart.square() * self.values * share
        self._mean = self._mean + apart * share
        self.values += values

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, `(C,)` each."""
        return self._mean, self._deviation / max(self.values - 1, 1)


class _ByBatch(TorchFunctionMode):
    """While open, batch norms whose running mean is known here normalise by their batch, which is added to a total."""

    def __init__(self, totals: dict[int, _Total]) -> None:
        super().__init__()
        self._totals = totals

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        total = self._totals.get(id(running_mean))
        if total is None:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        total.add(input)
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _of_two_or_more(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, one of a single picture joined to the one before: alone it may have no variance."""
    held = None
    for batch in batches:
        if held is None:
            held = batch
        elif len(batch) == 1:
            held = torch.cat((held, batch))
        else:
            yield held
            held = batch
    if held is not None:
        yield held


def _set(layer: nn.Module, mean: Tensor, variance: Tensor, count: int) -> None:
    for name, value in (("running_mean", mean), ("running_var", variance), ("num_batches_tracked", count)):
        buffer = getattr(layer, name)
        if buffer is not None:
            buffer.copy_(torch.as_tensor(value))
