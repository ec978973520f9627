"""Any function from pictures to scores as a model: without layers, perhaps without gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai_cli.classifiers.layers import scores_in

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

    def forward(self, inputs: Tensor) -> Tensor:
        """What the function returns, on the device and in the type of `inputs`. Raises TypeError if it is no scores."""
        # A copy in the plain layout: the function may work in place, or take a view.
        output = called(self.function, inputs.clone(memory_format=torch.contiguous_format))
        scores = scores_in(output)
        if isinstance(scores, np.ndarray) and scores.dtype.kind in "biuf":
            # A copy as well, of what may be read-only, or overwritten with the next scores.
            scores = torch.from_numpy(np.array(scores, np.float64, order="C"))
        if not isinstance(scores, Tensor) or scores.is_complex():
            kind = f" of {scores.dtype}" if isinstance(scores, Tensor | np.ndarray) else ""
            raise TypeError(
                f"scores (B, K) must be a tensor or a NumPy array of real numbers, found {type(output).__name__}{kind}"
            )
        return scores.to(inputs)


def called(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a user's function returns. Raises RuntimeError if it would end the process, or is asynchronous."""
    try:
        output = function(*given, **options)
    except SystemExit as error:
        raise RuntimeError(f"the function ended the process (sys.exit {error.code})") from error
    if inspect.iscoroutine(output):
        output.close()  # or Python would warn that nobody waits for it
        raise RuntimeError("the function is asynchronous")
    return output


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
