"""Saliency: how much the score moves when a pixel moves.

    R = max_c |df/dx_c|

over the colour channels c; or their mean, the Euclidean norm of the gradient, or its signed sum: what the score gains
when the pixel gets brighter. It says where the score is sensitive, not what speaks for or against the class, and is
noisy on deep nets because the gradient of a piecewise linear function jumps between neighbouring points.

Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks, 2013 (arXiv:1312.6034).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.reduction import Reduce, reduced

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class Saliency(Method):
    """Absolute gradient of the score, largest over the colour channels (Simonyan 2013)."""

    name: ClassVar[str] = "saliency"
    family: ClassVar[str] = "gradient"

    reduce: Reduce = "max"

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(input_gradient=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        assert evidence.input_gradient is not None
        return Attribution(reduced(evidence.input_gradient, self.reduce), signed=self.reduce == "sum")
