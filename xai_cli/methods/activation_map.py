"""Class activation maps: the feature maps of late layers, weighted and added up; what this family shares."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import CLASSLESS, Attribution, Evidence, Method, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.classifiers.layers import FeatureLayer

Layers = Annotated[
    list[str] | None,
    Option("Name of a layer to look at, repeated for several, whose maps are scaled to at most 1 and averaged; "
           "found automatically if not given ('xai layers MODEL' lists them)."),
]  # fmt: skip
Relu = Annotated[bool, Option("Keep only evidence for the target; without it the map is signed.")]


@dataclass(frozen=True)
class LayerMap(Method):
    """A map on the grid of a late layer, enlarged to the model's input; of several layers the mean."""

    family: ClassVar[str] = "cam"

    layer: Layers = None
    relu: Relu = True

    def needs(self, classifier: Classifier) -> Needs:
        names = tuple(layer.name for layer in self._layers(classifier))
        return Needs(layers=names) if self.by_gradient else Needs(activations=names)

    @abstractmethod
    def layer_map(self, evidence: Evidence, layer: FeatureLayer) -> Tensor:
        """The map `(B, H, W)` on the layer's grid."""

    def attribute(self, evidence: Evidence) -> Attribution:
        layers = self._layers(evidence.classifier)
        maps = [self._enlarged(self._checked_map(evidence, layer), evidence) for layer in layers]
        name = ", ".join(layer.name for layer in layers)
        notes = () if self.class_specific else (CLASSLESS,)
        return Attribution(fused(maps), signed=not self.relu, layer=name, notes=notes)

    def _layers(self, classifier: Classifier) -> tuple[FeatureLayer, ...]:
        if not self.layer:
            return (classifier.feature_layer(),)
        # In one order, whatever order they are named in, because sums of floats depend on it.
        return tuple(classifier.feature_layer(name) for name in sorted(set(self.layer)))

    def _checked_map(self, evidence: Evidence, layer: FeatureLayer) -> Tensor:
        if self.by_gradient and not layer.grid(evidence.gradients[layer.name]).flatten(1).any(dim=1).all():
            raise ValueError(
                f"the score does not depend on layer {layer.name!r}, its gradient there is exactly zero; choose "
                "another layer or target"
            )
        return self.layer_map(evidence, layer)

    def _enlarged(self, cam: Tensor, evidence: Evidence) -> Tensor:
        return enlarged(cam.relu() if self.relu else cam, evidence)


@dataclass(frozen=True)
class ActivationMap(LayerMap):
    """A weighted sum of the feature maps of a late layer, from what the plain pass shows of it."""

    @abstractmethod
    def cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The map `(B, H, W)` on the layer's grid, from its activation and gradient, both `(B, K, H, W)`."""

    def layer_map(self, evidence: Evidence, layer: FeatureLayer) -> Tensor:
        return self.cam(layer.grid(evidence.activations[layer.name]), layer.grid(evidence.gradients[layer.name]))


def enlarged(grid: Tensor, evidence: Evidence) -> Tensor:
    """A map `(B, H, W)` on a grid of positions at the size of the model's input, `(B, h, w)`, bilinearly."""
    from torch.nn.functional import interpolate

    return interpolate(grid[:, None], evidence.inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def fused(maps: list[Tensor]) -> Tensor:
    """The one map `(B, h, w)`, as it is; or the mean of several, each divided by its largest absolute value, because
    layers have scales of their own.

    So a sign stays a sign and zero stays zero, unlike under min-max scaling, and layers that contradict each other
    cancel, unlike under a maximum (LayerCAM's fusion, made for maps without sign). A layer whose map is zero everywhere
    adds nothing. What comes out lies in -1..1 and has no unit: its size says nothing between pictures.
    """
    if len(maps) == 1:
        return maps[0]
    import torch

    sizes = [each.abs().amax(dim=(1, 2), keepdim=True) for each in maps]
    return torch.stack([each / size.where(size > 0, 1) for each, size in zip(maps, sizes, strict=True)]).mean(dim=0)
