"""DeconvNet: the score projected back to the pixels, through rectifiers that look at the way back only.

    R = max_c |g_c|,    g_x = max(g_y, 0)    at every rectifier y = f(x), whatever x was

with g the gradient of the score everywhere else, max-pooling going back through the switches that the picture set. For
ReLU this is the paper's rule; other rectifiers get the same gate, and `rule` names them. Only switches, products, norms
and the like bring the picture into the map: a net without any gives the same map for every picture, and rows say so.

Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.gated import check_rectifiers, gated_gradient
from xai_cli.methods.propagation import check_operators
from xai_cli.options import Option

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.operators.plan import Plan

# Kinds of operators whose gradient is the same whatever the picture.
_FIXED = {"plain", "linear", "convolution", "affine", "constant"}


@dataclass(frozen=True)
class Deconvnet(Method):
    """Score projected back, only positive gradients through rectifiers, largest over the channels (Zeiler 2013)."""

    name: ClassVar[str] = "deconvnet"
    family: ClassVar[str] = "propagation"

    allow_plain_gradient: Annotated[
        bool, Option("Go on with a net that has no rectifier: its map is the plain gradient.")
    ] = False
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    def needs(self, classifier: Classifier) -> Needs:
        from xai_cli.operators.guided import Deconvnet as Gates

        check_operators(classifier, allow_unruled=self.allow_unruled)
        if not self.allow_plain_gradient:
            check_rectifiers(classifier, Gates(), self.name, allow_unruled=self.allow_unruled)
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        from xai_cli.operators.guided import Deconvnet as Gates

        gates = Gates()
        attribution = gated_gradient(evidence, gates, allow_unruled=self.allow_unruled)
        if _sees_the_picture(evidence.classifier.plan, gates.met):
            return attribution
        note = "nothing in this model shows the picture to deconvnet: all pictures of one target have the same map"
        return replace(attribution, notes=(*attribution.notes, note))


def _sees_the_picture(plan: Plan, rectifiers: set[str]) -> bool:
    """True if something beside `rectifiers` has a gradient that depends on the picture."""
    return any(step.operator not in rectifiers and not set(step.treatment.split(", ")) <= _FIXED for step in plan.steps)
