"""CAM: the feature maps of the last layer, weighted as the linear head weights their averages.

    R = sum_k w_k A_k,    f = mean over positions of R + bias

for nets whose scores are linear in the mean of a layer over its positions; w_k is then H W times the gradient df/dA_k,
which is the same at all positions and for all pictures. That is tried out on two inputs, with no name of a head looked
for, and any other net is refused. Every position's share of the score, exactly, with its sign; as coarse as the layer's
grid. It is Grad-CAM times H W, without the ReLU.

Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, 2015
(arXiv:1512.04150).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import ActivationMap, Relu
from xai_cli.methods.contract import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.classifiers.layers import FeatureLayer

# Of a linear head the gradient is the same number everywhere, in half precision too.
_DIFFERENT = 1e-5


@dataclass(frozen=True)
class Cam(ActivationMap):
    """Feature maps of the last layer weighted as the linear head weights their means; signed (Zhou 2015)."""

    name: ClassVar[str] = "cam"

    relu: Relu = False  # the mean of the map is the score only with its sign

    def needs(self, classifier: Classifier) -> Needs:
        for layer in self._layers(classifier):
            obstacle = _obstacle(classifier, layer)
            if obstacle is not None:
                raise ValueError(
                    f"cam expects scores that are linear in the mean of layer {layer.name!r} over its positions, found "
                    f"that {obstacle}; take gradcam, or name another layer with --layer"
                )
        return super().needs(classifier)

    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        weights = gradient.sum(dim=(2, 3), keepdim=True)
        return (weights * activation).sum(dim=1)


def _obstacle(classifier: Classifier, layer: FeatureLayer) -> str | None:
    """What shows that the scores are not linear in the mean of the layer, or None, on two inputs that differ much."""
    import torch

    (activation, gradient, score), (other, other_gradient, other_score) = (
        _linearised(classifier, layer, probe) for probe in classifier.probes()
    )
    least = _DIFFERENT * gradient.abs().max()
    if (gradient - gradient.mean(dim=(2, 3), keepdim=True)).abs().max() > least:
        return "positions count differently"
    if (gradient - other_gradient).abs().max() > least:
        return "something between that mean and the scores is not linear"
    bias, other_bias = score - (gradient * activation).sum(), other_score - (gradient * other).sum()
    rounding = torch.finfo(classifier.dtype).eps ** 0.5 * (score.abs() + (gradient * activation).abs().sum())
    return "other layers reach the scores beside it" if (bias - other_bias).abs() > rounding else None


def _linearised(classifier: Classifier, layer: FeatureLayer, probe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's activation `(1, K, H, W)`, the gradient of a random mix of the scores there, and that mix."""
    import torch

    from xai_cli.classifiers.layers import captured

    with torch.enable_grad(), captured(classifier.module, (layer.name,)) as kept:
        logits = classifier.eager_logits(probe)
        score = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits) * logits).sum()
        (gradient,) = classifier.gradient(score, [kept[layer.name]])
    return layer.grid(kept[layer.name].detach()), layer.grid(gradient), score.detach()
