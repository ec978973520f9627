"""The gradient of a strided convolution with respect to a picture, as one convolution of stride 1: exact, and faster.

A net's first convolution has three input channels, for which CPU kernels of the usual backward pass were never made.
Pixel `i = s u + r` (phase r of stride s) gets its gradient from outputs `o = u + d` through the tap `r + p - s d`, with
p the padding; so the s x s phases together are an ordinary convolution of the output's gradient, followed by a pixel
shuffle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FEW_CHANNELS = 4


class StridedInputGradient(TorchFunctionMode):
    """While open, convolutions that overlap, stride and see few channels take the faster way back to their input."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.conv2d and not kwargs and len(args) == 7 and _fits(*args):
            return _StridedConvolution.apply(*args[:5])
        return function(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor, _bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    if not all(isinstance(each, tuple) for each in (stride, padding, dilation)):
        return False
    return (
        x.requires_grad
        and not weight.requires_grad
        and weight.shape[1] <= _FEW_CHANNELS
        and len({*weight.shape[2:]}) == len({*stride}) == 1
        and weight.shape[2] > stride[0] > 1
        and {*dilation} == {1}
        and groups == 1
    )


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = x.shape[2:], stride[0], padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return input_gradient(gradients[0], weight, ctx.size, ctx.stride, ctx.padding), None, None, None, None


def input_gradient(
    gradient: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Tensor:
    """The gradient `(B, C, *size)` of a convolution's input from that of its output `(B, K, H, W)`.

    `weight` is `(K, C, k, k)`; dilation and groups are 1.
    """
    taps = [_taps(weight.shape[2], stride, pad, weight.device) for pad in padding]
    (rows, row_shifts), (columns, column_shifts) = taps
    kernel = F.pad(weight, (0, 1, 0, 1))  # the last row and column are zero: where a tap does not exist
    phases = kernel[:, :, rows[:, :, None, None], columns]  # (K, C, phase, shift, phase, shift)
    phases = phases.permute(1, 2, 4, 0, 3, 5).flatten(0, 2)
    edges: list[int] = []
    for shifts, length, given in zip((column_shifts, row_shifts), size[::-1], gradient.shape[:1:-1], strict=True):
        # What lies before the first output and behind the last one that any pixel can see; less than none is cut off.
        edges += [-shifts.start, -(-length // stride) + shifts.stop - 1 - given]
    channels_last = phases.contiguous(memory_format=torch.channels_last)
    shuffled = F.pixel_shuffle(F.conv2d(F.pad(gradient, edges), channels_last), stride)
    return shuffled[:, :, : size[0], : size[1]]


def _taps(kernel: int, stride: int, padding: int, device: torch.device) -> tuple[Tensor, range]:
    """Which tap of the kernel joins each phase to each shift: `(stride, shifts)` indices, `kernel` for none."""
    shifts = range(-((kernel - 1 - padding) // stride), (stride - 1 + padding) // stride + 1)
    phase = torch.arange(stride, device=device)[:, None]
    taps = phase + padding - stride * torch.arange(shifts.start, shifts.stop, device=device)
    return torch.where((taps >= 0) & (taps < kernel), taps, kernel), shifts
