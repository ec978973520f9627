"""Gradient times input: the share of each pixel in the score, if the score were linear.

    R = sum_c x_c df/dx_c

over the colour channels c, with x the picture as the model sees it, after preprocessing: its zero is the mean colour of
the model's training pictures, so pixels of that colour get nothing, and dark and bright ones have opposite signs. On a
net of rectifiers and max pooling without biases it adds up to the score, and equals integrated gradients, DeepLIFT and
LRP-0 from that mean colour; elsewhere what the biases give to the score is missing from the sum.

Shrikumar et al.: Not Just a Black Box: Learning Important Features Through Propagating Activation Differences, 2016
(arXiv:1605.01713).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class GradientXInput(Method):
    """Gradient of the score times the preprocessed picture, whose zero is the mean colour; signed (Shrikumar 2016)."""

    name: ClassVar[str] = "gradient-x-input"
    family: ClassVar[str] = "gradient"

    def needs(self, classifier: Classifier) -> Needs:
        return Needs(input_gradient=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        assert evidence.input_gradient is not None
        return Attribution((evidence.inputs * evidence.input_gradient).sum(dim=1), signed=True)
