"""Guided backprop: the gradient along paths on which the signal and its gradient are both positive everywhere.

    R = max_c |g_c|,    g_x = max(g_y, 0) * 1[x > 0]    at every ReLU y = max(x, 0)

with g the gradient of the score everywhere else. Rectifiers other than ReLU get the generalised gate
g_x = max(g_y, 0) * max(f'(x), 0), which is not of the paper: `rule` names it. A rectifier is what the net calls,
as a module, a function, a method, in place, or as `clamp(min=0)`; one made of products and comparisons is none. The map
is sharp because the gate favours edges of the picture; it depends on the class much less than the gradient does
(Adebayo et al. 2018, arXiv:1810.03292).

Springenberg, Dosovitskiy, Brox, Riedmiller: Striving for Simplicity: The All Convolutional Net, 2014 (arXiv:1412.6806).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.gated import check_rectifiers, gated_gradient
from xai_cli.methods.propagation import check_operators
from xai_cli.options import Option

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class GuidedBackprop(Method):
    """Gradient through positive signals with positive gradients only, largest over the channels (Springenberg 2014)."""

    name: ClassVar[str] = "guided-backprop"
    family: ClassVar[str] = "propagation"

    allow_plain_gradient: Annotated[
        bool, Option("Go on with a net that has no rectifier: its map is the plain gradient.")
    ] = False
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    def needs(self, classifier: Classifier) -> Needs:
        from xai_cli.operators.guided import Guided

        check_operators(classifier, allow_unruled=self.allow_unruled)
        if not self.allow_plain_gradient:
            check_rectifiers(classifier, Guided(), self.name, allow_unruled=self.allow_unruled)
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        from xai_cli.operators.guided import Guided

        return gated_gradient(evidence, Guided(), allow_unruled=self.allow_unruled)
