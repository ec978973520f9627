"""The gradient of batch norm for one picture, which torch gives wrongly where it comes back in another layout.

The axis of one picture may have any stride, and torch (2.15, on CPUs) takes a gradient that has an unusual one for
channels first although its channels are last, so that numbers of other places are read: in nets whose tokens become a
picture again, such as LeViT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch.overrides import TorchFunctionMode


class OnePicture(TorchFunctionMode):
    """While open, batch norm of one picture is given its gradient in the layout of its input."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is F.batch_norm and len(args[0]) == 1 and out.requires_grad:
            out.register_hook(lambda gradient: torch.empty_like(args[0]).copy_(gradient))
        return out
