"""DeconvNet: the score projected back to the pixels, through rectifiers that look at the way back only.

    R = max_c |g_c|,    g_x = max(g_y, 0)    at every rectifier y = f(x), whatever x was

with g the gradient of the score everywhere else, max-pooling going back through the switches that the picture set. For
ReLU this is the paper's rule; other rectifiers get the same gate, and `rule` names them. Only switches, products, norms
and the like bring the picture into the map: a net without any gives the same map for every picture, and rows say so.

Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.gated import GatedMethod

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.operators.guided import Gates
    from xai_cli.operators.plan import Plan

# Kinds of operators whose gradient is the same whatever the picture.
_FIXED = {"plain", "linear", "convolution", "affine", "constant"}


@dataclass(frozen=True)
class Deconvnet(GatedMethod):
    """Score projected back, only positive gradients through rectifiers, largest over the channels (Zeiler 2013)."""

    name: ClassVar[str] = "deconvnet"

    def gates(self) -> Gates:
        from xai_cli.operators.guided import Deconvnet as Projection

        return Projection()

    def notes(self, classifier: Classifier, gates: Gates) -> tuple[str, ...]:
        """As for all gates, and whether the pictures of a target can differ at all."""
        notes = super().notes(classifier, gates)
        if _sees_the_picture(classifier.plan, gates.met):
            return notes
        return (*notes, "nothing in this model shows the picture to deconvnet: all pictures of one target have one map")


def _sees_the_picture(plan: Plan, rectifiers: set[str]) -> bool:
    """True if something beside `rectifiers` has a gradient that depends on the picture."""
    return any(step.operator not in rectifiers and not set(step.treatment.split(", ")) <= _FIXED for step in plan.steps)
