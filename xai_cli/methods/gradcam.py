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
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class GradCam(Method):
    """Feature maps of a late layer weighted by their mean gradient (Selvaraju 2017)."""

    name: ClassVar[str] = "gradcam"
    family: ClassVar[str] = "cam"

    layer: Annotated[str | None, Option("Name of the layer to look at; found automatically if not given.")] = None
    relu: Annotated[bool, Option("Keep only evidence for the target; without it the map is signed.")] = True

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(layers=(classifier.feature_layer(self.layer).name,))

    def attribute(self, evidence: Evidence) -> Attribution:
        from torch.nn.functional import interpolate

        layer = evidence.classifier.feature_layer(self.layer)
        activation = layer.grid(evidence.activations[layer.name])
        gradient = layer.grid(evidence.gradients[layer.name])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        cam = (weights * activation).sum(dim=1, keepdim=True)
        cam = cam.relu() if self.relu else cam
        relevance = interpolate(cam, evidence.inputs.shape[-2:], mode="bilinear", align_corners=False)
        return Attribution(relevance.squeeze(1), signed=not self.relu, layer=layer.name)
