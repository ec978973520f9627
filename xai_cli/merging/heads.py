"""The classifier head: which tensors it is, and how its rows of one class in several models come together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xai_cli.merging.formula import Fit


def head_names(module: nn.Module, classes: int) -> tuple[str, ...]:
    """Names in the state dict of the classifier head: what timm's configuration calls so, else the last linear layer or
    convolution with as many outputs as there are classes; empty if there is none.
    """
    named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    found = _below(module, (named,) if isinstance(named, str) else tuple(named))
    if found:
        return found
    layers = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == classes
    ]
    return _below(module, tuple(layers[-1:]))


def check_classes(labels: Sequence[Sequence[str]]) -> None:
    """Raises ValueError if a model has two classes of one name."""
    for model, names in enumerate(labels, 1):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"expected every class once, found {twice[0]!r} {names.count(twice[0])} times among the classes of "
                f"checkpoint {model}; give each its own name in --class-names"
            )


def union_of_classes(labels: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The classes of all models: the first model's in their order, then new ones as they come."""
    return tuple(dict.fromkeys(name for names in labels for name in names))


def rows_by_name(own: Sequence[str], classes: Sequence[str]) -> Fit | None:
    """How a head with the classes `own` becomes rows of one with `classes`; None if it is one already."""
    if tuple(own) == tuple(classes):
        return None
    places = torch.tensor([classes.index(name) for name in own], dtype=torch.long)

    def placed(tensor: Tensor) -> Tensor:
        rows = tensor.new_zeros(len(classes), *tensor.shape[1:])
        rows[places] = tensor
        return rows

    has = torch.zeros(len(classes), dtype=torch.bool)
    has[places] = True
    return Fit(placed, placed, None if has.all() else has)


def _below(module: nn.Module, prefixes: Sequence[str]) -> tuple[str, ...]:
    # A model that is one layer has no prefix.
    starts = tuple(f"{prefix}." if prefix else "" for prefix in prefixes)
    return tuple(name for name in module.state_dict() if name.startswith(starts)) if starts else ()
