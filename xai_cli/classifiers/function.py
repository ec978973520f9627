"""Any function from pictures to scores as a model: without layers, perhaps without gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What a function that makes a model may want to know before.
_BUILDING = {"num_classes", "in_chans"}


class ScoreFunction(nn.Module):
    """The scores `(B, K)` that `function` gives of pictures `(B, C, h, w)`.

    A `pretrained_cfg` of the function, timm's form, is the module's.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        if hasattr(function, "pretrained_cfg"):
            self.pretrained_cfg = function.pretrained_cfg

    def forward(self, inputs: Tensor) -> Any:
        """What the function returns; a tensor, or NumPy array, on the device and in the type of `inputs`."""
        # A copy in the plain layout: the function may work in place, or take a view.
        output = self.function(inputs.clone(memory_format=torch.contiguous_format))
        if isinstance(output, np.ndarray):
            # A copy as well, of what may be read-only, or overwritten with the next scores.
            output = torch.from_numpy(np.array(output, order="C"))
        return output.to(inputs) if isinstance(output, Tensor) else output


def takes_pictures(function: object) -> bool:
    """True for a function that cannot be called without pictures; False for one that makes a model, or no function."""
    if isinstance(function, type) or not callable(function):
        return False
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # compiled functions do not tell
        return True
    return any(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
        and parameter.name not in _BUILDING
        for parameter in parameters
    )
