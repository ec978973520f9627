"""The score's gradient through gated rectifiers: what `guided-backprop`, `guided-gradcam` and `deconvnet` share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.propagation import check_operators, forward_gap
from xai_cli.options import Option

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.operators.guided import Gates


@dataclass(frozen=True)
class GatedMethod(Method):
    """The gradient of the score through gated rectifiers, absolute, largest over the colour channels."""

    family: ClassVar[str] = "propagation"

    allow_plain_gradient: Annotated[
        bool, Option("Go on with a net that has no rectifier: its map is the plain gradient.")
    ] = False
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    @abstractmethod
    def gates(self) -> Gates:
        """The rule set that bends the gradient at rectifiers."""

    def needs(self, classifier: Classifier) -> Needs:
        check_operators(classifier, allow_unruled=self.allow_unruled)
        if not (self.allow_plain_gradient or self._finds_rectifiers(classifier)):
            raise ValueError(
                f"the model has no rectifier, so {self.name} would show the plain gradient, as saliency does; take "
                "saliency, or go on with --allow-plain-gradient"
            )
        return Needs()

    def _finds_rectifiers(self, classifier: Classifier) -> bool:
        from xai_cli.operators.guided import RECTIFIERS

        if classifier.plan.functions() & RECTIFIERS:
            return True
        # What is left may still be cut off at zero, which only a pass can tell.
        gates = self.gates()
        classifier.ruled_logits(classifier.example().requires_grad_(), gates, allow_unruled=self.allow_unruled)
        return bool(gates.met)

    def attribute(self, evidence: Evidence) -> Attribution:
        # Methods with the same gates share one pass.
        return evidence.shared(("gates", type(self.gates()), self.allow_unruled), lambda: self._gated(evidence))

    def _gated(self, evidence: Evidence) -> Attribution:
        import torch

        classifier, gates, maps, checks = evidence.classifier, self.gates(), [], []
        for rows, real in evidence.parts():
            inputs = evidence.inputs[rows].requires_grad_()
            logits = classifier.ruled_logits(inputs, gates, allow_unruled=self.allow_unruled)
            (gradient,) = classifier.gradient(evidence.scores(logits, rows), [inputs])
            maps.append(gradient[:real].abs().amax(dim=1))
            checks.append({name: values[:real] for name, values in forward_gap(evidence, logits, rows).items()})
        joined = {name: torch.cat([each[name] for each in checks]) for name in checks[0]}
        rule, notes = gates.told or "plain gradient", self.notes(classifier, gates)
        return Attribution(torch.cat(maps).float(), signed=False, checks=joined, rule=rule, notes=notes)

    def notes(self, classifier: Classifier, gates: Gates) -> tuple[str, ...]:
        """What a reader of the maps should know, once `gates` have met the model."""
        notes = check_operators(classifier, allow_unruled=self.allow_unruled)
        if not gates.met:
            notes += ("the model has no rectifier, so this is the plain gradient, as saliency shows it",)
        if classifier.plan.layers("step"):
            notes += ("the model compares numbers; a rectifier made of comparisons keeps its plain gradient",)
        return notes
