"""Grad-CAM++: feature maps weighted by their positive gradients, positions with an object's share each.

    R = ReLU( sum_k a_k A_k ),    a_k = sum_ij  ReLU(g_ij) g_ij^2 / (2 g_ij^2 + S_k g_ij^3),    S_k = sum_ij A_k,ij

with g = df/dA_k the gradient of the score at each position. Squares and cubes of g stand where the derivation has
second and third derivatives: it silently takes exp(f) for the score and f for piecewise linear, and drops the common
factor exp(f), so the weights depend on the scale of the logits. Where S_k g is small, as in nets that end with a global
average, a_k is half the sum of the positive gradients; channels that speak against the class count for nothing.

Chattopadhay, Sarkar, Howlader, Balasubramanian: Grad-CAM++: Improved Visual Explanations for Deep Convolutional
Networks, 2018 (arXiv:1710.11063).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import ActivationMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GradCamPlusPlus(ActivationMap):
    """Feature maps of a late layer weighted by their positive gradients, small objects too (Chattopadhay 2018)."""

    name: ClassVar[str] = "gradcam++"

    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The fraction is reduced by g^2, so that small gradients keep their say and nothing is divided by zero."""
        positive = gradient.relu()
        # Activations with a negative sum, which the derivation does not know, would give the fraction a pole.
        total = activation.sum(dim=(2, 3), keepdim=True).relu()
        weights = (positive / (2 + total * positive)).sum(dim=(2, 3), keepdim=True)
        return (weights * activation).sum(dim=1)
