"""Sensitivity: the squared gradient of the score, which tells few pixels from all others.

    R = sum_c (df/dx_c)^2

over the colour channels c: the square of `saliency --reduce norm`. The map adds up to the squared length of the
gradient, so each pixel has a share of how much the score can change by a small step. It says what would make the
picture more or less of the class, not what makes it one; squared, the noise of the gradient shows as single bright
pixels.

Baehrens et al.: How to Explain Individual Classification Decisions, 2010 (arXiv:0912.1128), for the gradient; squared
in Montavon, Samek, Mueller: Methods for Interpreting and Understanding Deep Neural Networks, 2018 (arXiv:1706.07979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class Sensitivity(Method):
    """Squared gradient of the score, summed over the colour channels (Baehrens 2010)."""

    name: ClassVar[str] = "sensitivity"
    family: ClassVar[str] = "gradient"

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(input_gradient=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        assert evidence.input_gradient is not None
        return Attribution(evidence.input_gradient.square().sum(dim=1), signed=False)
