"""XGrad-CAM: the feature maps of a late layer, weighted by their gradient where they are active.

    R = ReLU( sum_k a_k A_k ),    a_k = sum_ij g_ij A_k,ij / sum_ij A_k,ij,    g = df/dA_k

so that each channel adds to sum(R), before the ReLU, what its gradient times activation adds up to, as in HiResCAM, but
spread over the positions as the channel is active. Where all positions have one gradient it is Grad-CAM. On layers that
end in a ReLU the quotient is a mean of the gradient; where activations have both signs, in transformers, a channel that
nearly cancels over the positions may get a large weight.

Fu, Hu, Dong, Guo, Gao, Li: Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs, 2020
(arXiv:2008.02312).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import ActivationMap

if TYPE_CHECKING:
    from torch import Tensor


_CANCELLED = 1e-3  # of the sum of absolute values: what half precision leaves of positions that add up to nothing


@dataclass(frozen=True)
class XGradCam(ActivationMap):
    """Feature maps of a late layer weighted by their gradient where they are active (Fu 2020)."""

    name: ClassVar[str] = "xgradcam"

    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """A channel whose activation cancels over the positions, up to rounding, has no weight."""
        total = activation.sum(dim=(2, 3), keepdim=True)
        rounding = _CANCELLED * activation.abs().sum(dim=(2, 3), keepdim=True)
        weights = (gradient * activation).sum(dim=(2, 3), keepdim=True) / total
        return (weights.where(total.abs() > rounding, 0) * activation).sum(dim=1)
