"""What the tests of the families assert and the benchmark writes down."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_cli import find_method
from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Attribution, Evidence, Needs
from xai_cli.targets import Target


def evidence_of(classifier: Classifier, pictures: int) -> Evidence:
    """Random pictures, each explained for the class of the largest score, of any sign, that no other one has."""
    inputs = torch.randn(pictures, 3, *classifier.preprocessing.size, generator=torch.Generator().manual_seed(1))
    targets: list[Target] = []
    for scores in classifier.logits(inputs).abs():
        scores[[target.index for target in targets]] = 0
        targets.append(Target(int(scores.argmax())))
    return plain_pass(classifier, inputs, Needs(logits=True, input_gradient=True)).evidence(targets, chunk=pictures)


def explained(evidence: Evidence, method: str, **options: object) -> Attribution:
    """The maps by a method. Raises ValueError if it does not fit the model."""
    chosen = find_method(method)(**options)
    chosen.needs(evidence.classifier)
    return chosen.attribute(evidence)


def completeness_gap(evidence: Evidence, relevance: Tensor) -> Tensor:
    """How far each map `(B, h, w)` is from adding up to the score's change from a picture of zeros `(B,)`, relative to
    that change, or to a thousandth of the largest score.
    """
    assert evidence.logits is not None
    change = evidence.scores(evidence.logits - evidence.classifier.logits(torch.zeros_like(evidence.inputs)))
    return (relevance.sum((1, 2)) - change).abs() / torch.maximum(change.abs(), 1e-3 * evidence.logits.abs().amax(1))


def likeness_to_gradient(evidence: Evidence, relevance: Tensor) -> Tensor:
    """The cosine `(B,)` of each map with that of the plain gradient, both largest over the channels."""
    assert evidence.input_gradient is not None
    plain = evidence.input_gradient.abs().amax(1)
    return torch.cosine_similarity(relevance.flatten(1), plain.flatten(1))
