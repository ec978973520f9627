"""Where the relevance of each picture went: what did not reach the pixels, by what it was that kept it.

score = pixels + biases + tokens + softmax + rest
"""

from __future__ import annotations

import torch
from torch import Tensor

CATEGORIES = ("biases", "tokens", "softmax", "rest")


class Account:
    """Sums of relevance per picture `(B,)` float64 in each of `CATEGORIES`; filled during a backward pass.

    biases: of layers and norms; tokens: class tokens, position embeddings and whatever constant is added; softmax: what
    its Taylor expansion keeps; rest: offsets of functions that are not zero at zero, and what stabilisers swallow.
    """

    def __init__(self, pictures: int, device: torch.device) -> None:
        self.pictures = pictures
        # Constants hang on it, because autograd visits only what leads to a tensor that was asked for.
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.sums = {name: torch.zeros(pictures, dtype=torch.float64, device=device) for name in CATEGORIES}

    def add(self, category: str, relevance: Tensor) -> None:
        """Adds relevance, an axis of which counts the pictures, or windows of the first, then of the second, ..."""
        self.sums[category] += self._per_picture(relevance).sum(-1).double().sum(1)

    def add_inner(self, category: str, left: Tensor, right: Tensor, sign: int = 1) -> None:
        """Adds, or takes away, the sum of `left * right` per picture, without a tensor of their size in between."""
        if left.ndim == 4 and left.is_contiguous(memory_format=torch.channels_last):
            left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
        left, right = self._per_picture(left), self._per_picture(right)
        self.sums[category] += sign * (left.unsqueeze(-2) @ right.unsqueeze(-1)).double().flatten(1).sum(1)

    def _per_picture(self, tensor: Tensor) -> Tensor:
        """The tensor with an axis of its own for the pictures, in front of the windows of each."""
        if self.pictures == 1:
            return tensor.reshape(1, 1, -1)
        axis = next((axis for axis, size in enumerate(tensor.shape) if size % self.pictures == 0), None)
        if axis is None or tensor.numel() == 0:
            # What belongs to no picture is left out, which the account's gap shows.
            return tensor.new_zeros(self.pictures, 1, 1)
        return tensor.movedim(axis, 0).reshape(self.pictures, tensor.shape[axis] // self.pictures, -1)


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, account, category, anchor, value):  # type: ignore[no-untyped-def]
        ctx.account, ctx.category = account, category
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (value,) = ctx.saved_tensors
        # A masked score of minus infinity has no gradient, and no share.
        ctx.account.add(ctx.category, torch.nan_to_num(gradient * value, 0.0, 0.0, 0.0))
        return None, None, ctx.account.anchor.detach(), None


def constant(account: Account, category: str, value: Tensor) -> Tensor:
    """The same numbers, whose relevance is added to `category` in the backward pass."""
    return _Constant.apply(account, category, account.anchor, value)
