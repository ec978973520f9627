"""Layer-wise relevance propagation: the score shared out backwards, layer by layer, until it lies on the pixels.

    R_i = sum_j (share of i in what was summed up to j) * R_j

How a layer shares is its rule; which layer gets which rule is a composite. What biases, class tokens, position
embeddings and softmax keep is measured for every picture, as shares of the score: `conservation` (the pixels') +
`kept_by_biases` + `kept_by_tokens` + `kept_by_softmax` + `kept_by_rest` = 1, up to `account_gap`.

Bach et al.: On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation, 2015
(10.1371/journal.pone.0130140); composites: Montavon et al. 2019 (10.1007/978-3-030-28954-6_10) and Kohlbrenner et al.
2020 (arXiv:1910.09840); transformers: Achtibat et al. 2024 (arXiv:2402.05602), Ali et al. 2022 (arXiv:2202.07304).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.propagation import check_operators, propagate, try_composite
from xai_cli.operators.composites import Composite, composite_of, default_composite, matches, parse_rules
from xai_cli.options import Option
from xai_cli.sentences import unknown

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class Lrp(Method):
    """Relevance of the score passed back layer by layer; signed, with an account of every picture (Bach 2015)."""

    name: ClassVar[str] = "lrp"
    family: ClassVar[str] = "propagation"

    composite: Annotated[
        Literal["auto", "epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1",
                "epsilon-alpha2-beta1-flat", "epsilon-gamma-box", "excitation-backprop", "attnlrp", "cp-lrp"],
        Option("Which layer gets which rule; auto takes cp-lrp (gamma 0.25 for convolutions, 0.05 for linear layers, "
               "attention held fast) for nets that attend or have mostly linear layers, else epsilon-plus-flat."),
    ] = "auto"  # fmt: skip
    rules: Annotated[
        list[str] | None,
        Option("WHERE=RULE, over the composite's: WHERE is first, convolution, linear or a layer's name, * "
               "standing for any part; RULE is epsilon, lrp-0, gamma(0.25), alpha-beta(2,1), z-plus, z-box, w2, flat, "
               "pass."),
    ] = None  # fmt: skip
    epsilon: Annotated[
        float, Option("What the rule epsilon adds to its denominator, relative to its size.", min=0, max=10)
    ] = 1e-6
    start: Annotated[
        Literal["logit", "one", "contrastive"],
        Option("The relevance to share out: the score, one, or the score less that of the best other class."),
    ] = "logit"
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rules:
            parse_rules(self.rules)

    def needs(self, classifier: Classifier) -> Needs:
        check_operators(classifier, allow_unruled=self.allow_unruled)
        if self.rules:
            self._try_rules(classifier)
        return Needs()

    def _try_rules(self, classifier: Classifier) -> None:
        """Raises ValueError if a rule of the user's own is for no layer with weights, or for one it does not fit."""
        plan = classifier.plan
        layers = [*plan.layers("convolution"), *plan.layers("linear")]
        for pattern in self._composite(classifier).named:
            if not any(matches(pattern, layer) for layer in layers):
                told = unknown("layer with weights", pattern, layers, hint="xai layers --operators lists them")
                raise ValueError(f"--rules: {told}")
        try_composite(classifier, self._composite(classifier), allow_unruled=self.allow_unruled)

    def _name(self, classifier: Classifier) -> str:
        return default_composite(classifier.plan) if self.composite == "auto" else self.composite

    def _composite(self, classifier: Classifier) -> Composite:
        return composite_of(self._name(classifier), self.rules or [], self.epsilon)

    def attribute(self, evidence: Evidence) -> Attribution:
        composite = self._composite(evidence.classifier)
        told = ", ".join([self._name(evidence.classifier), *(self.rules or [])])
        return propagate(evidence, composite, rule=told, start=self.start, allow_unruled=self.allow_unruled)
