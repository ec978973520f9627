"""Class activation maps: the feature maps of late layers, weighted and added up; what this family shares."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.classifiers.layers import FeatureLayer


@dataclass(frozen=True)
class ActivationMap(Method):
    """A weighted sum of the feature maps of a late layer, enlarged to the model's input; of several layers the mean."""

    family: ClassVar[str] = "cam"

    layer: Annotated[
        list[str] | None,
        Option("Name of a layer to look at, repeated for several, whose maps are averaged; found automatically if not "
               "given ('xai layers MODEL' lists them)."),
    ] = None  # fmt: skip
    relu: Annotated[bool, Option("Keep only evidence for the target; without it the map is signed.")] = True

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(layers=tuple(layer.name for layer in self._layers(classifier)))

    @abstractmethod
    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The map `(B, H, W)` on the layer's grid, from its activation and gradient, both `(B, K, H, W)`."""

    def attribute(self, evidence: Evidence) -> Attribution:
        layers = self._layers(evidence.classifier)
        maps = [self._enlarged(self._cam(evidence, layer), evidence) for layer in layers]
        name = ", ".join(layer.name for layer in layers)
        return Attribution(fused(maps), signed=not self.relu, layer=name)

    def _layers(self, classifier: Classifier) -> tuple[FeatureLayer, ...]:
        if not self.layer:
            return (classifier.feature_layer(),)
        return tuple(classifier.feature_layer(name) for name in dict.fromkeys(self.layer))

    def _cam(self, evidence: Evidence, layer: FeatureLayer) -> Tensor:
        gradient = layer.grid(evidence.gradients[layer.name])
        if not gradient.flatten(1).any(dim=1).all():
            raise ValueError(
                f"the score does not depend on layer {layer.name!r}, its gradient there is exactly zero; choose another "
                "layer or target"
            )
        return self.cam(layer.grid(evidence.activations[layer.name]), gradient)

    def _enlarged(self, cam: Tensor, evidence: Evidence) -> Tensor:
        """The map `(B, h, w)` at the size of the model's input."""
        from torch.nn.functional import interpolate

        cam = cam.relu() if self.relu else cam
        return interpolate(cam[:, None], evidence.inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def fused(maps: list[Tensor]) -> Tensor:
    """The one map `(B, h, w)`, as it is; or the mean of several, each divided by its largest absolute value, because
    layers have scales of their own.
    """
    if len(maps) == 1:
        return maps[0]
    import torch

    sizes = [each.abs().amax(dim=(1, 2), keepdim=True) for each in maps]
    return torch.stack([each / size.where(size > 0, 1) for each, size in zip(maps, sizes, strict=True)]).mean(dim=0)
