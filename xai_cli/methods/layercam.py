"""LayerCAM: the feature maps of a layer, each position weighted by its own positive gradient.

    R = ReLU( sum_k ReLU(g_k) A_k ),    g_k = df/dA_k

Made for shallow layers too (`--layer`), where the mean gradient of Grad-CAM says little because positions differ; there
it draws edges. Positions where the score wants less of a feature are left out instead of counted against the class.

Jiang, Zhang, Hou, Cheng, Wei: LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, 2021
(doi:10.1109/TIP.2021.3089943).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import ActivationMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerCam(ActivationMap):
    """Feature maps of any layer times their positive gradient, position by position (Jiang 2021)."""

    name: ClassVar[str] = "layercam"

    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.relu() * activation).sum(dim=1)
