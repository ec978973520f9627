"""DeepLIFT: the change of the score from a baseline to the picture, followed back through every operator.

    R_i = sum_c m_ic (x - x0)_ic,    m = (change of the score) / (change of x_ic), by the chain rule of such quotients

Completeness: sum_i R_i = f(x) - f(x0), exactly and in one backward pass; what rounding leaves of it is measured for
every picture as `completeness_gap` = |sum R - (f(x) - f(x0))| / |f(x) - f(x0)|. How each kind of operator divides its
change is told in `xai_cli/operators/deeplift.py`. The mean over several baselines is DeepLIFT-SHAP.

Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation Differences, 2017
(arXiv:1704.02685); DeepLIFT-SHAP: Lundberg and Lee 2017 (arXiv:1705.07874).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.compared import Baseline, ComparedMethod, completeness_gap
from xai_cli.methods.contract import Attribution, Evidence, Needs
from xai_cli.methods.propagation import check_operators, forward_gap
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class DeepLift(ComparedMethod):
    """The score's change from a baseline, passed back operator by operator; signed, sums to it (Shrikumar 2017)."""

    name: ClassVar[str] = "deeplift"
    family: ClassVar[str] = "propagation"
    bounds: ClassVar[Mapping[str, float]] = {"completeness_gap": 1e-3}  # it is exact, so what is left is rounding

    baseline: Baseline = "zero"
    rule: Annotated[
        Literal["rescale", "reveal-cancel"],
        Option("One multiplier per function, or after layers with weights one for what rises and one for what falls."),
    ] = "rescale"
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    def needs(self, classifier: Classifier) -> Needs:
        check_operators(classifier, allow_unruled=self.allow_unruled)
        self.read_baselines(classifier)
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        starts = self.baselines_of(evidence)
        told: str = self.rule
        means: dict[str, Tensor] = {}
        for rows, places, real in evidence.chunks(starts.count):
            values_of, told = self._part(evidence, rows, starts.at(rows, places))
            for name, values in values_of.items():
                mean = means.setdefault(name, values.new_zeros(len(evidence.inputs), *values.shape[1:]))
                mean.index_add_(0, rows[:real], values[:real] / starts.count)
        relevance, change = means.pop("relevance"), means.pop("change")
        checks = {"completeness_gap": completeness_gap(relevance, change), **means}
        notes = check_operators(evidence.classifier, allow_unruled=self.allow_unruled)
        return Attribution(relevance, signed=True, checks=checks, rule=told, notes=notes + starts.notes)

    def _part(self, evidence: Evidence, rows: Tensor, start: Tensor) -> tuple[dict[str, Tensor], str]:
        """Relevance `(n, h, w)`, the score's change `(n,)` and checks of the pictures `rows (n,)`; the rule applied."""
        from xai_cli.operators.deeplift import DeepLift, Reference

        classifier, reference = evidence.classifier, Reference(inputs_of_weights=self.rule == "reveal-cancel")
        before = classifier.ruled_logits(start.detach().requires_grad_(), reference, allow_unruled=self.allow_unruled)
        rules, inputs = DeepLift(reference), evidence.inputs[rows].requires_grad_()
        logits = classifier.ruled_logits(inputs, rules, allow_unruled=self.allow_unruled)
        rules.finish()
        scores = evidence.scores(logits, rows)
        (multipliers,) = classifier.gradient(scores, [inputs])
        relevance = (multipliers * (inputs - start)).sum(dim=1)
        change = scores - evidence.scores(before, rows)
        told = f"reveal-cancel at {rules.revealed} of {rules.functions} functions" if rules.revealed else self.rule
        measured = {"relevance": relevance.detach(), "change": change.detach(), **forward_gap(evidence, logits, rows)}
        return measured, told
