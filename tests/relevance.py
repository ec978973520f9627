"""One pass by the rules of LRP through any module, with what its account holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_cli.operators.account import Account
from xai_cli.operators.composites import COMPOSITES, Composite
from xai_cli.operators.lrp import Lrp, with_pixels
from xai_cli.operators.mode import OperatorMode


class Net(nn.Module):
    """A function of `x` as a module, with the layers that it uses."""

    def __init__(self, function, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x) if self._modules or self._parameters else self.function(x)


@dataclass(frozen=True)
class Passed:
    """Relevance in the shape of the inputs, and per picture `(B,)` the score, and what was kept from the pixels."""

    relevance: Tensor
    score: Tensor
    kept: dict[str, Tensor]
    output: Tensor

    @property
    def gap(self) -> Tensor:
        """What is missing of each picture's score."""
        return self.relevance.flatten(1).sum(1) + sum(self.kept.values()) - self.score


def mix(output: Tensor) -> Tensor:
    """What each number of a picture's output counts in its score."""
    return torch.linspace(1, 2, output[0].numel(), dtype=output.dtype)


def relevance_of(
    module: nn.Module, x: Tensor, composite: Composite | str = "epsilon", *, low: float = -3.0, high: float = 3.0
) -> Passed:
    """Passes a score of each picture back: the sum of all numbers that the module returns for it, times 1 up to 2.

    The pixels are told to lie between `low` and `high`.
    """
    module = module.eval().requires_grad_(False).to(x.dtype)
    composite = COMPOSITES[composite] if isinstance(composite, str) else composite
    account = Account(len(x), x.device)
    share, inputs = with_pixels(x, *(x.new_full((1, *x.shape[1:]), each) for each in (low, high)))
    with torch.enable_grad(), OperatorMode(module, Lrp(module, composite, account)) as mode:
        output = mode.finished(module(inputs))
    score = (output.flatten(1) * mix(output)).sum(1) if output.ndim > 1 else output
    relevance, _ = torch.autograd.grad(score.sum(), [share, account.anchor], allow_unused=True, materialize_grads=True)
    return Passed(relevance, score.detach(), account.sums, output.detach())
