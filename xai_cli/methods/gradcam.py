"""Grad-CAM: the feature maps of a late layer, weighted by how much the score wants more of them.

    R = ReLU( sum_k a_k A_k ),    a_k = mean over positions of df/dA_k

with A the `(B, K, H, W)` activation of the layer; enlarged bilinearly to the model's input. It is as coarse as the
layer's grid. On transformers the layer is the last one whose patch tokens still reach the score (after the last
attention of a net that reads its class token they do not, and the map would be zero).

Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, 2017
(arXiv:1610.02391).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import ActivationMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GradCam(ActivationMap):
    """Feature maps of a late layer weighted by their mean gradient (Selvaraju 2017)."""

    name: ClassVar[str] = "gradcam"

    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return (weights * activation).sum(dim=1)
