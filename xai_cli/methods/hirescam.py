"""HiResCAM: the feature maps of a late layer, each position times its own gradient.

    R = sum_k g_k A_k,    g_k = df/dA_k

position by position, not averaged as in Grad-CAM, which can light up places that the score did not use. If a linear
head follows the layer, sum(R) = f - bias: every position's share of the score, with its sign. Through more than a
linear head it is gradient times activation, a first-order account. After global average pooling and a linear head it is
Grad-CAM.

Draelos, Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks, 2020
(arXiv:2011.08891).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import ActivationMap, Relu

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HiResCam(ActivationMap):
    """Feature maps of a late layer times their gradient, position by position; signed (Draelos 2020)."""

    name: ClassVar[str] = "hirescam"

    relu: Relu = False  # the account of the score needs its sign

    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient * activation).sum(dim=1)
