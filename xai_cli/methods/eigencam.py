"""Eigen-CAM: where the feature maps of a late layer differ most from their average over the picture.

    R = ReLU( sum_k v_k (A_k - mean A_k) )

with v the first principal component of the activations `(K,)` at all positions of one picture. It looks at no class and
no score: what stands out to the net, whatever it then makes of it.

The paper takes the singular vector of A as it is, which is largely the mean activation and, on a transformer, can mark
the background; a principal component is taken from the mean. Its sign, which nothing determines, is that of its longer
tail (sum of cubes at least zero): what stands out fills fewer positions than what it stands out from.

Muhammad, Yeasin: Eigen-CAM: Class Activation Map using Principal Components, 2020 (arXiv:2008.00299).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.activation_map import LayerMap
from xai_cli.methods.contract import Evidence
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.layers import FeatureLayer


@dataclass(frozen=True)
class EigenCam(LayerMap):
    """First principal component of the feature maps of a late layer, the same for every class (Muhammad 2020)."""

    name: ClassVar[str] = "eigencam"
    class_specific: ClassVar[bool] = False
    by_gradient: ClassVar[bool] = False

    relu: Annotated[bool, Option("Keep only what stands out; without it the map is signed.")] = True

    def layer_map(self, evidence: Evidence, layer: FeatureLayer) -> Tensor:
        """The component of each picture on the layer's grid."""
        return self.cam(layer.grid(evidence.activations[layer.name]))

    def cam(self, activation: Tensor) -> Tensor:
        """The component of each picture, from the products of its positions or of its channels, whichever are fewer:
        7 x 7 positions of 2048 channels, 256 channels at 56 x 56 positions.
        """
        from torch.linalg import eigh

        features = activation.flatten(2)
        features = features - features.mean(dim=2, keepdim=True)
        if features.shape[1] < features.shape[2]:
            direction = eigh(features @ features.mT).eigenvectors[:, :, -1:]
            component = (direction.mT @ features)[:, 0]
        else:
            energies, patterns = eigh(features.mT @ features)
            component = energies[:, -1:].relu().sqrt() * patterns[:, :, -1]
        turned = (component**3).sum(dim=1, keepdim=True) < 0
        return component.where(~turned, -component).view_as(activation[:, 0])
