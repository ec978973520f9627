"""Attention as a rule set: every operator keeps its plain gradient, and what multiplies the values is kept in passing.

    A = softmax(queries keys'),    out = A values

It is seen at the product with the values, so it is the same whether attention is fused, written out or a layer of
torch; and A is what multiplies them in the end: masked, rescaled, normalised again or mixed over heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xai_cli.operators.mode import calling_layer
from xai_cli.operators.rules import Rules, Weighted, tensors_in


@dataclass(frozen=True)
class Attention:
    """One call of attention, in the graph of its pass.

    Attributes:
        layer: the name of the innermost layer that calls; empty for the model itself.
        weights: `(B, H, Q, K)`, how much each of Q queries takes of each of K values; in another shape if the call does
            not work on whole pictures.
        values: `(B, ..., K, D)`, what is taken.
        out: `(B, H, Q, D)`, what each query has in the end.
    """

    layer: str
    weights: Tensor
    values: Tensor
    out: Tensor


class AttentionMaps(Rules):
    """Keeps in `met` every attention of a pass over so many `pictures`, in order; all gradients are the plain ones."""

    def __init__(self, module: nn.Module, pictures: int) -> None:
        self._names = {layer: name for name, layer in module.named_modules()}
        self.pictures = pictures
        self.met: list[Attention] = []

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        return _marked(x.softmax(axis))

    def weighted(self, call: Weighted) -> Tensor:
        out = call.value()
        # Heads that are mixed remain attention; a layer that makes something new of them does not.
        return _marked(out) if _is_marked(call.x) and out.shape == call.x.shape else out

    def quotient(self, left: Tensor | float, right: Tensor) -> Tensor:
        return _marked(left / right) if _is_marked(left) else left / right

    def passed(self, apply: Callable[..., Any], x: Tensor, out: Any) -> None:
        if _is_marked(x):
            for part in tensors_in(out):
                _marked(part)

    def rescaled(self, apply: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> None:
        self.passed(apply, x, out)

    def product(self, apply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        first = _is_marked(left)
        if first or _is_marked(right):
            weights, values = (left, right) if first else (right, left)
            if apply is torch.matmul:
                return self._attended(weights, values) if first else self._attended(weights.mT, values.mT).mT
            if isinstance(apply, partial) and apply.func is torch.einsum:
                return self._summed(apply, weights, values, first=first)
        return apply(left, right)

    def _attended(self, weights: Tensor, values: Tensor) -> Tensor:
        joint = weights.ndim == values.ndim == 3 and len(weights) == len(values) and not len(weights) % self.pictures
        if joint:  # pictures and their heads share the first axis
            weights, values = (each.unflatten(0, (self.pictures, -1)) for each in (weights, values))
        out = weights @ values
        self.met.append(Attention(calling_layer(self._names), weights, values, out))
        return out.flatten(0, 1) if joint else out

    def _summed(self, apply: partial[Tensor], weights: Tensor, values: Tensor, *, first: bool) -> Tensor:
        """A sum by its equation, such as `bhqk,bkhd->bqhd`, as a product of matrices if it is one."""
        terms, _, out = apply.args[0].replace(" ", "").partition("->")
        w, v = terms.split(",")[:: 1 if first else -1]
        batch = [x for x in w if x in v and x in out]
        query, key, rest = set(w) - set(v), set(w) - set(out), set(v) - set(w)
        if "." in terms or (len(query), len(key), len(rest)) != (1, 1, 1) or len(batch) + 2 != len(w):
            return apply(*((weights, values) if first else (values, weights)))
        matrices = (
            each.permute([letters.index(x) for x in (*batch, *order)])
            for each, letters, order in ((weights, w, (*query, *key)), (values, v, (*key, *rest)))
        )
        return self._attended(*matrices).permute([[*batch, *query, *rest].index(x) for x in out])


def _marked(tensor: Tensor) -> Tensor:
    tensor._attends = True  # type: ignore[attr-defined]  # a note of ours on the tensor
    return tensor


def _is_marked(value: object) -> bool:
    return getattr(value, "_attends", False)
