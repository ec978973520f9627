"""The gradient of the score through gated rectifiers: what `guided-backprop` and `deconvnet` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xai_cli.methods.contract import Attribution, Evidence
from xai_cli.methods.propagation import check_operators, forward_gap

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.operators.guided import Gates


def check_rectifiers(classifier: Classifier, gates: Gates, method: str, *, allow_unruled: bool) -> None:
    """Raises ValueError if no operator of the model is a rectifier that `gates` can bend."""
    from xai_cli.operators.guided import RECTIFIERS

    if classifier.plan.functions() & RECTIFIERS:
        return
    # What is left may still be cut off at zero, which only a pass can tell.
    classifier.ruled_logits(classifier.example().requires_grad_(), gates, allow_unruled=allow_unruled)
    if not gates.met:
        raise ValueError(
            f"the model has no rectifier, so {method} would show the plain gradient, as saliency does; take saliency, "
            "or go on with --allow-plain-gradient"
        )


def gated_gradient(evidence: Evidence, gates: Gates, *, allow_unruled: bool) -> Attribution:
    """The gradient of every picture's score through `gates`, absolute, largest over the colour channels."""
    import torch

    classifier, maps, checks = evidence.classifier, [], []
    for rows, real in evidence.parts():
        inputs = evidence.inputs[rows].requires_grad_()
        logits = classifier.ruled_logits(inputs, gates, allow_unruled=allow_unruled)
        (gradient,) = classifier.gradient(evidence.scores(logits, rows), [inputs])
        maps.append(gradient[:real].abs().amax(dim=1))
        checks.append({name: values[:real] for name, values in forward_gap(evidence, logits, rows).items()})
    joined = {name: torch.cat([each[name] for each in checks]) for name in checks[0]}
    notes = check_operators(classifier, allow_unruled=allow_unruled)
    if not gates.met:
        notes += ("the model has no rectifier, so this is the plain gradient, as saliency shows it",)
    if classifier.plan.layers("step"):
        notes += (
            "the model compares numbers of the picture; a rectifier made of comparisons keeps its plain gradient",
        )
    rule = gates.told or "plain gradient"
    return Attribution(torch.cat(maps).float(), signed=False, checks=joined, rule=rule, notes=notes)
