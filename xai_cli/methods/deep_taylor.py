"""Deep Taylor decomposition: the score shared out backwards among what spoke for it, until it lies on the pixels.

    R_i = sum_j (x_i w_ij)+ / sum_i (x_i w_ij)+ * R_j                                           z-plus, inside the net
    R_i = sum_j (x_i w_ij - low w_ij+ - high w_ij-) / sum_i (...) * R_j                         z-box, at the pixels
    R_i = sum_j w_ij^2 / sum_i w_ij^2 * R_j                                                     w2, unbounded inputs

Each rule is the first-order Taylor expansion of one neuron around a root in the domain of its inputs: positive numbers
inside, the pixels' bounds at the first layer. In a net of ReLU all relevance has the sign of the score: a map shows
what spoke for it, nothing against. What biases and the like keep is measured as in `lrp`.

Montavon et al.: Explaining nonlinear classification decisions with deep Taylor decomposition, 2017 (arXiv:1512.02479).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.propagation import check_operators, propagate
from xai_cli.operators.composites import Composite, Rule
from xai_cli.options import Option

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier

_FIRST = {"box": "z-box", "unbounded": "w2"}


@dataclass(frozen=True)
class DeepTaylor(Method):
    """Relevance of the score by what spoke for it, layer by layer; in ReLU nets of the score's sign (Montavon 2017)."""

    name: ClassVar[str] = "deep-taylor"
    family: ClassVar[str] = "propagation"

    pixels: Annotated[
        Literal["box", "unbounded"],
        Option("What the first layer's inputs can be: between black and white, or any number."),
    ] = "box"
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    def needs(self, classifier: Classifier) -> Needs:
        check_operators(classifier, allow_unruled=self.allow_unruled)
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        inside, first = Rule("z-plus"), Rule(_FIRST[self.pixels])
        told = f"{inside.name}, first={first.name}"
        return propagate(evidence, Composite(inside, inside, first), rule=told, allow_unruled=self.allow_unruled)
