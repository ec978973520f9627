"""Score-CAM: the feature maps of a late layer, weighted by the score of the picture seen through each of them alone.

    R = ReLU( sum_k w_k A_k ),    w = softmax over k of f(x * m_k),    m_k = (U_k - min U_k) / (max U_k - min U_k)

with A the `(B, K, H, W)` activation of the layer and U_k its channel enlarged to the input. The mask m_k in 0..1
multiplies the normalised input, so what it hides gets the colour the model calls zero (mean). The paper weighs by the
increase over the score of an empty picture, which gives the same weights: that score is one number for all channels,
and a softmax does not see it. (The authors' code has no softmax over channels, but takes the class probability as w_k.)
All weights are positive, so a map is negative only where activations are. A softmax of scores far apart is nearly all
one channel. A channel that is the same everywhere is no mask and has no weight.

A picture takes as many passes as the layer has channels that vary, 2048 at the end of a ResNet-50. With N `channels`
the softmax and the sum run over the N alone whose activation has the largest variance over positions.

Wang et al.: Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, 2019 (arXiv:1910.01279).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.channel_map import ChannelMap
from xai_cli.methods.contract import Evidence
from xai_cli.methods.fills import still
from xai_cli.methods.masking import Masking

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.layers import FeatureLayer


@dataclass(frozen=True)
class ScoreCam(ChannelMap):
    """Feature maps of a late layer weighted by the score of what each lets through (Wang 2019)."""

    name: ClassVar[str] = "scorecam"

    def weights(self, evidence: Evidence, layer: FeatureLayer, activation: Tensor) -> Tensor:
        """The softmax over channels of the scores; nothing for a picture in which no channel varies."""
        varies = activation.amax(dim=(2, 3)) > activation.amin(dim=(2, 3))
        key = (self.name, layer.name, self.channels)
        scores = evidence.common(key, lambda: self._scores(evidence, activation, varies))
        return scores[:, :, evidence.rank].softmax(dim=1).where(varies.any(dim=1, keepdim=True), 0)

    def _scores(self, evidence: Evidence, activation: Tensor, varies: Tensor) -> Tensor:
        """The score `(B, K, T)` of every target through each channel alone; -inf where none is looked at."""
        import torch

        order, counts = self.ranked(activation, varies)
        most, size = order.shape[1], evidence.inputs.shape[-2:]
        masking = Masking(
            evidence,
            visible=lambda rows, samples: _masks(activation[rows, order[rows, samples]], size),
            fill=still(torch.zeros_like(evidence.inputs)),
            counts=counts.tolist(),
            rows=evidence.rows_per_pass(most),
        )
        rows, samples = (torch.arange(most, device=counts.device) < counts[:, None]).nonzero(as_tuple=True)
        scores = activation.new_full((*order.shape, len(evidence.everyone)), -torch.inf)
        scores[rows, order[rows, samples]] = masking.scores(rows, samples).to(scores)
        return scores


def _masks(activation: Tensor, size: tuple[int, ...]) -> Tensor:
    """Each channel `(n, H, W)` enlarged and scaled to 0..1, `(n, 1, h, w)`; zero if it is the same everywhere."""
    from torch.nn.functional import interpolate

    enlarged = interpolate(activation[:, None], size, mode="bilinear", align_corners=False)
    low, high = enlarged.amin(dim=(2, 3), keepdim=True), enlarged.amax(dim=(2, 3), keepdim=True)
    return (enlarged - low) / (high - low).where(high > low, 1)
