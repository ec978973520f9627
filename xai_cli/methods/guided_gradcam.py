"""Guided Grad-CAM: the fine map of guided backprop, kept where Grad-CAM sees evidence for the class.

    R = max_c |g_c| * U,    U = Grad-CAM, enlarged to the input

with g the gradient through rectifiers that let only positive gradients of positive signals back. The paper shows
g_c * U in colours; U is at least zero, so the largest absolute value over the channels is guided backprop's map times
Grad-CAM's. The fine lines are those of guided backprop, which depend on the class much less than on the edges of the
picture; what tells classes apart is Grad-CAM, as coarse as its layer.

Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, 2017
(arXiv:1610.02391).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import Layers
from xai_cli.methods.contract import Attribution, Evidence, Needs
from xai_cli.methods.gated import GatedMethod
from xai_cli.methods.gradcam import GradCam

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.operators.guided import Gates


@dataclass(frozen=True)
class GuidedGradCam(GatedMethod):
    """Guided backprop times Grad-CAM, largest over the channels (Selvaraju 2017)."""

    name: ClassVar[str] = "guided-gradcam"

    layer: Layers = None

    def gates(self) -> Gates:
        from xai_cli.operators.guided import Guided

        return Guided()

    def needs(self, classifier: Classifier) -> Needs:
        return super().needs(classifier) | self._gradcam.needs(classifier)

    def attribute(self, evidence: Evidence) -> Attribution:
        fine, coarse = super().attribute(evidence), self._gradcam.attribute(evidence)
        notes = tuple(f"guided backprop: {note}" for note in fine.notes)
        return replace(fine, relevance=fine.relevance * coarse.relevance, layer=coarse.layer, notes=notes)

    @property
    def _gradcam(self) -> GradCam:
        return GradCam(layer=self.layer)
